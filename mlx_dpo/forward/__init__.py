"""Model loading, forward pass, log-probs and their gradients, and the memory model of micro-batches."""
