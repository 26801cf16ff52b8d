"""Judges: which of two completions of a prompt is better. One module per judge; `judge_registry` discovers them."""
