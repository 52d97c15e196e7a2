"""Caches of latents and text states."""
