"""Scores of sets of clips, by features of networks."""
