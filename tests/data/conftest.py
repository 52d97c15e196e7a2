"""A folder of clips and pictures."""

from pathlib import Path

import pytest
import torch
from clip_sources import make_clip

from latentvid.data.video.writing import write_video


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six 9-frame clips (0..5) and two images (6, 7), of one size."""
    for i in range(6):
        make_clip(tmp_path / f"{i}.mp4", 9)
    for i in (6, 7):
        write_video(tmp_path / f"{i}.png", torch.full((1, 32, 32, 3), 10 * i, dtype=torch.uint8), 1.0)
    return tmp_path
