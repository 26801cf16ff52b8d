"""Models and adapters as GGUF files."""
