"""Judges, which say which of two answers to a prompt is better. One module a judge; `judge_registry` finds them all."""
