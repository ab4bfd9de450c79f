"""Saved adapters: their file format, their use in diffusers pipelines, and their export."""
