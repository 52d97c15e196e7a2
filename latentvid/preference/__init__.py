"""Pairs of clips of which one is preferred: made by a model, and labelled by scores or by people."""
