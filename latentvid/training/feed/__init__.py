"""Packs on their way to each process."""
