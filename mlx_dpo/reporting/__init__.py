"""What people see of a run: terminal output, metrics.jsonl, the HTML report, charts, warnings and trackers."""
