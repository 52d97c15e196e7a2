"""Frames of videos, animations and images: opened, decoded, shown as they are meant to be seen, written."""
