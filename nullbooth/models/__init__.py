"""Diffusion models: what their files say, how they are loaded, and how their denoisers are called."""
