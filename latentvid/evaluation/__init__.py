"""Measures on clips."""
