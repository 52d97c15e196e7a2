"""Edits of real clips: what was to stay, what was asked for, and whether it holds in time."""
