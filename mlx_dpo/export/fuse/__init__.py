"""Fuse an adapter into its model."""
