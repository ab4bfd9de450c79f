"""Edits of prompts by a closed form, in the weights of cross-attention."""
