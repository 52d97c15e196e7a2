"""Optical flow, flicker and motion."""
