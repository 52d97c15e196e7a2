"""Clips whose frames tell their number, and sources of them."""

from pathlib import Path

import torch

from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.manifest import Manifest, Sample
from latentvid.data.video.writing import write_video

PLAIN = Transform(spatial_stride=8, temporal_stride=4)


def make_clip(path: Path, frames: int, height: int = 32, width: int = 32) -> Path:
    """A clip whose every frame is one grey, four levels brighter than the one before it."""
    grey = torch.arange(frames, dtype=torch.uint8)[:, None, None, None] * 4 + 20
    write_video(path, grey.expand(frames, height, width, 3).contiguous(), 8.0, crf=0)
    return path


def listing(*samples: Sample, dropped: tuple[tuple[str, str], ...] = ()) -> Manifest:
    return Manifest.of("test", samples, dropped)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def source(folder: Path, transform: Transform = PLAIN, **more: float) -> ClipSource:
    frames = [9] * 6 + [1] * 2
    samples = (
        Sample(str(folder / f"{i}.{'mp4' if n > 1 else 'png'}"), f"clip {i}", n, 8.0 if n > 1 else 0.0, 32, 32)
        for i, n in enumerate(frames)
    )
    return ClipSource(listing(*samples), transform, **more)
