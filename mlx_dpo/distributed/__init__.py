"""Several processes, on one machine or more, that train one adapter together over mlx's distributed engine."""
