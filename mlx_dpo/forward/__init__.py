"""Token ids to log-probabilities: loading, adapters, the reference, and the forward pass."""
