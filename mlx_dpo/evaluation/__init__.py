"""Measuring policies on examples: metrics, KL, scores and win rates."""
