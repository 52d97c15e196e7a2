"""A few seconds of footage: two shots in a file, copies of it, borders, an image, and what is broken."""

from pathlib import Path

import numpy as np
import pytest
import torch
from curated_footage import shot, write

from latentvid.data.video.writing import write_video


@pytest.fixture(scope="session")
def footage(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    one, other = shot(1, 24), shot(2, 24)
    write(folder / "film.mp4", one, other)
    half = torch.nn.functional.avg_pool2d(torch.from_numpy(one).permute(0, 3, 1, 2).float(), 2)
    write(folder / "sub" / "copy.mp4", half.permute(0, 2, 3, 1).numpy().astype(np.uint8), crf=30)
    bars = np.pad(shot(3, 20), ((0, 0), (12, 12), (0, 0), (0, 0)))
    write(folder / "letterbox.mp4", bars)
    (folder / "letterbox.txt").write_text("blobs\nthat move")
    write_video(folder / "picture.png", torch.from_numpy(shot(4, 1)), 1.0)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "empty.mp4").touch()
    (folder / ".hidden.mp4").touch()
    (folder / "notes.pdf").touch()
    return folder
