"""Files and folders that are complete or absent, and that record the identity of their inputs."""
