"""From protected prompts to projectors: trajectories, second moments, eigenvectors, projectors."""
