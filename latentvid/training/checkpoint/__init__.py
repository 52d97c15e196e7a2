"""Checkpoints, and the files of a run's folder."""
