"""Preferences among completions of a prompt, by a judge: verdicts, pairs, and the files that `mlx-dpo label` writes."""
