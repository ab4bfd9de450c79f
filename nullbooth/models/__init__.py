"""Diffusion models: checking and loading their files, and calling their denoisers."""
