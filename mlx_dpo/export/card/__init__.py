"""The model card and the training record that it is rendered from."""
