"""Sampling pipelines, in diffusers' format."""
