"""Frames of videos, animations and images: opened, decoded, shown as they are meant to be seen, written."""

from .reading import VideoInfo, probe, read_chunks, read_frames, read_windows

__all__ = ["VideoInfo", "probe", "read_chunks", "read_frames", "read_windows"]
