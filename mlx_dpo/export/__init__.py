"""Export: fused models, GGUF and PEFT files, model cards, and uploads to the Hub."""
