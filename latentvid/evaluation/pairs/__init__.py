"""Scores of clips against the clips they should equal."""
