"""The one loop for all objectives, and what surrounds it: optimizer, metrics, evaluation, checkpoints, the run."""
