"""Control signals for the demo: a small white dot that goes where the digit's centre of mass goes.

Axis letters: F H W frames, height, width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.video.reading import read_frames
from ..data.video.writing import write_video
from ..files import write_whole
from .digits import FPS, SIZES, Label, prompts, render
from .judge import Judge, look

FRAMES = 17
SPREAD = 1.25  # of the dot's brightness, a Gaussian, pixels
COLUMN = "control"  # of the manifest
NEAR = 1.0  # pixels


class Asked(NamedTuple):
    """A clip that is asked for: its prompt, and a path [F,2] (y, x) that no training clip has."""

    label: Label
    prompt: str
    size: tuple[int, int]
    path: Tensor


def dot(path: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [F,H,W,3] of a path [F,2] (y, x)."""
    rows, columns = (torch.arange(side).float() for side in size)
    far = (rows - path[:, :1])[:, :, None] ** 2 + (columns - path[:, 1:])[:, None] ** 2  # [F,H,W]
    return (255 * torch.exp(-far / (2 * SPREAD**2))).round().to(torch.uint8)[..., None].expand(-1, -1, -1, 3)


def write_paths(data: Path, out: Path) -> Path:
    """A dot's clip for each training clip of the demo's `data`, and OUT/train.jsonl with a column of them."""
    rows = []
    for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        pixels = read_frames(data / row["path"], 0, row["frames"], threads=0)
        place = Path("clips") / Path(row["path"]).name
        write_video(out / place, dot(look(pixels.float()).centre, tuple(pixels.shape[1:3])), FPS)
        rows.append({**row, "path": str((data / row["path"]).resolve()), COLUMN: place.as_posix()})
    write_whole(out / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return out / "train.jsonl"


def asked_clips(count: int, seed: int) -> list[Asked]:
    """Prompts of pairs of digit and direction that training never had, each with the path of a held-out digit image
    that moves so."""
    found = []
    for i, (label, text) in enumerate(prompts(count, heldout=True, seed=seed)):
        size, rng = SIZES[i % len(SIZES)], np.random.default_rng((seed, 7, i))
        pixels = render(label, FRAMES, size, rng, heldout=True)
        found.append(Asked(label, text, size, look(pixels.float()).centre))
    return found


def score(clips: list[Tensor], asked: list[Asked], judge: Judge) -> dict[str, float]:
    """Shares over clips [F,H,W,3]. path: the centre of mass is within 1 pixel of the asked path on the mean of the
    frames; frames: the share of all frames in which it is; digit: as prompted; distance: its mean, pixels."""
    right, far = [], []
    for clip, one in zip(clips, asked, strict=True):
        verdict = judge(clip)
        right.append(verdict.digit == one.label.digit)
        away = (verdict.path - one.path).norm(dim=1)
        far.append(torch.where(away.isfinite(), away, float(max(one.size))))  # nothing to be seen is far
    away = torch.stack(far)  # [N,F]
    return {
        "path": float((away.mean(1) <= NEAR).float().mean()),
        "frames": float((away <= NEAR).float().mean()),
        "digit": sum(right) / len(right),
        "distance": float(away.mean()),
        "count": len(clips),
    }
