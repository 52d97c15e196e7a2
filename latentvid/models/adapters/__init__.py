"""What changes a transformer and is saved apart from it: LoRA."""
