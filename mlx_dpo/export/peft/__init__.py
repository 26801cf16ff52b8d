"""Adapters in PEFT's format, written and read."""
