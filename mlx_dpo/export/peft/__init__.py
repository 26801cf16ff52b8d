"""PEFT's adapter format, both ways."""
