"""Time, memory and storage of a run before it starts."""
