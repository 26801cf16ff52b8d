"""Helpers that any package may use; nothing here knows about models or data."""
