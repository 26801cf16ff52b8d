"""Training in a child process, which is restarted if it crashes."""
