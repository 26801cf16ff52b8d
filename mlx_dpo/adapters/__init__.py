"""LoRA, DoRA and full fine-tuning: trainable tensors, adapter files, merging."""
