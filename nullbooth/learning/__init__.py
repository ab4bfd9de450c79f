"""Training: trainable modules, data, objectives, optimisers, and the training job."""
