"""Scores of autoencoders."""
