"""Groups of settings that `TrainConfig` consists of."""
