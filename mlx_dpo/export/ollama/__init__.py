"""Ollama's description of a model: a Modelfile with the chat template as a Go template."""
