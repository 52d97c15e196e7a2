"""What a run would be: memory, time and packs, without training."""
