"""A mask that is drawn on the first frame of a clip."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.video.reading import read_frames
from ..errors import ClipError

SIDE = 640  # pixels of the longer side, to which small frames are enlarged: a brush is finer then
PAINTED = 16  # of 255, of a layer's opacity: what counts as drawn


@dataclass(frozen=True)
class Drawn:
    """What an editor of pictures gives. layers: what is painted over the picture, RGBA."""

    layers: list[Image.Image]

    @classmethod
    def of(cls, value: dict[str, Any] | None) -> Drawn:
        return cls([one for one in (value or {}).get("layers") or () if one])


@dataclass(frozen=True)
class Mask:
    """white: bool [H,W], where to paint."""

    white: np.ndarray

    @contextmanager
    def saved(self) -> Iterator[Path]:
        """A PNG of it, inside."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "mask.png"
            Image.fromarray(self.white.astype(np.uint8) * 255).save(file)
            yield file


def mask_of(drawn: Drawn, size: tuple[int, int]) -> Mask | None:
    """Where any layer is painted, at the clip's size (width, height); None where nothing is."""
    white = np.zeros(size[::-1], bool)
    for layer in drawn.layers:
        opacity = layer.convert("RGBA").getchannel("A").resize(size, Image.Resampling.BOX)
        white |= np.asarray(opacity) > PAINTED
    return Mask(white) if white.any() else None


def first_frame(file: str | None) -> Image.Image | None:
    """Of a clip, to draw on, a small one enlarged; None for none, and for what cannot be read, of which the program
    says why."""
    if not file:
        return None
    try:
        frame = Image.fromarray(read_frames(file, 0, 1)[0].numpy())
        times = max(1, SIDE // max(frame.size))
        return frame.resize((times * frame.width, times * frame.height), Image.Resampling.NEAREST)
    except ClipError:
        return None
