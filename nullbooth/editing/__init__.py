"""Closed-form edits of cross-attention."""
