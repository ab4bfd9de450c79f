"""Saved adapters: their file, how diffusers pipelines use them, and how they are exported."""
