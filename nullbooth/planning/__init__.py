"""Estimates of time, memory and storage before a run starts."""
