"""Rows of a user's file to pairs of token ids: records -> sources -> chat -> batches."""
