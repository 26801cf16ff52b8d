"""Evaluation: metrics on examples, implicit rewards, judged answers and benchmark tasks."""
