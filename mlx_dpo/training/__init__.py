"""The training loop, its protocols (batch source, scorer, loss), the optimizer, checkpoints and the run folder."""
