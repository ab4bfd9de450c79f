"""Training: what is trained, on which data, by which objective."""
