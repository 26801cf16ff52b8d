"""LoRA, DoRA and full fine-tuning: what is trained of a model, and its files."""
