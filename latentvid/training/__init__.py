"""Training: configuration, the loop, its tasks and its records."""
