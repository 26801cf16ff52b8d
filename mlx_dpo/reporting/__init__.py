"""What people see of a run: the terminal, metrics.jsonl, the model card."""
