"""Data and tensor parallelism: several processes train one adapter together over mlx's distributed engine."""
