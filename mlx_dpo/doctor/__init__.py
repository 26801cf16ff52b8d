"""`mlx-dpo doctor`: what this machine is, and self-tests of the training engine on its own backend."""
