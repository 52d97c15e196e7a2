"""The plan: which samples make up each training step."""
