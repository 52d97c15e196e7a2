"""Distillation of the transformer's stage: a frozen teacher, and a student that needs fewer passes."""
