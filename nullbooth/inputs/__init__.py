"""Inputs of the user: settings, prompts, edits, photographs. Imports no torch."""
