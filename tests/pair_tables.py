"""Small tables of pairs of clips."""

import json
from pathlib import Path

import torch

from latentvid.data.video.writing import write_video
from latentvid.demo.digits import prompts

SHAPES = ((9, 32, 32), (9, 32, 32), (5, 24, 32), (1, 32, 32), (5, 24, 32), (13, 32, 32))  # F, H, W


def make_clip(path: Path, shape: tuple[int, int, int], seed: int, fps: float = 8.0) -> Path:
    """Noise, which tells frames and their mirror images apart."""
    pixels = torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    path = path.with_suffix(".mp4" if shape[0] > 1 else ".png")
    write_video(path, pixels, fps, crf=0) if shape[0] > 1 else write_video(path, pixels, fps)
    return path


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_pairs(folder: Path, shapes=SHAPES, equal: bool = False) -> Path:
    """The table of pairs of these shapes, with prompts of the demo. equal: both clips of a pair have one content."""
    rows = []
    for i, (shape, (_, caption)) in enumerate(zip(shapes, prompts(len(shapes), heldout=False, seed=3), strict=True)):
        path = make_clip(folder / f"preferred-{i}", shape, 2 * i)
        other = make_clip(folder / f"rejected-{i}", shape, 2 * i if equal else 2 * i + 1)
        rows.append({"path": path.name, "rejected": other.name, "caption": caption})
    return write_rows(folder / "pairs.jsonl", rows)
