"""Statistics of the protected prompts: trajectories, second moments, eigenvectors, projectors."""
