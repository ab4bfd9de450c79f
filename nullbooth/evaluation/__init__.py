"""Evaluation: drawing pictures, measuring them, and writing pages and figures."""
