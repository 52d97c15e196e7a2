"""What is measured of a segment's frames. Nothing here is learned; `networks.py` has what is.

Axes: F frames, H height, W width; luma is uint8 [F,H,W], BT.601's, 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.motion import motion_strength
from .hashing import FLAT_HASH, HASHES_A_SECOND, WINDOWS, perceptual_hashes
from .probing import Row, each_frame, fitted_size

VERSION = 2  # raise it when the same frames get other measures
DARK, FLAT = 32, 16  # a border's brightest pixel, and how far its pixels differ in a frame (letterbox bars, encoded)
LARGEST_BORDER = 0.5  # share of a side that borders take together: more is a dark picture
FLOW_AREA = 256 * 144  # pixels that flow and stillness are looked at
FLOWS_A_SECOND = 4
STILL = 6  # levels that a pixel's luma varies by, all the time, and still counts as the same
BLACK, WHITE = 5, 250
BLUR_FRAMES, BLUR_WIDTH = 5, 9


def measured(row: Mapping[str, Any], found: Sequence[Row], area: int) -> list[Row]:
    """The measures of segments of a file that follow each other, which is read once.

    row: of the file. found: `segments`. Raises ClipError where the file cannot be read there.
    """
    size = fitted_size(row["height"], row["width"], area)
    first, end = found[0]["first"], found[-1]["first"] + found[-1]["count"]
    waiting, made = list(found), []
    luma: list[np.ndarray] = []

    def take(number: int, frame: np.ndarray) -> None:
        begin, count = waiting[0]["first"], waiting[0]["count"]
        if number < begin:
            return
        luma.append(luma_of(frame))
        if len(luma) == count:
            segment = waiting.pop(0)
            made.append(measures(np.stack(luma), row["fps"], (row["height"], row["width"])) | {"first": begin})
            assert segment["first"] == begin
            luma.clear()
            waiting or waiting.append({"first": end, "count": 0})

    each_frame(row["file"], first, end - first, take, size)
    return made


def luma_of(frame: np.ndarray) -> np.ndarray:
    """uint8 [H,W] of uint8 [H,W,3]: BT.601's, by Pillow in whole numbers, which no processor rounds otherwise."""
    return np.asarray(Image.fromarray(frame).convert("L"))


def measures(luma: np.ndarray, fps: float, native: tuple[int, int]) -> Row:
    """All of them, of one segment. native: (height, width) of the file, in whose pixels borders are told."""
    _, height, width = luma.shape
    top, bottom, left, right = borders(luma)
    inside = luma[:, top : height - bottom, left : width - right]
    down, across = native[0] / height, native[1] / width
    pixels = [math.ceil(side * scale) for side, scale in ((top, down), (bottom, down), (left, across), (right, across))]
    small = _shrunk(inside, FLOW_AREA)
    return {
        "border": _rounded(1 - inside[0].size / luma[0].size),
        **dict(zip(("border_top", "border_bottom", "border_left", "border_right"), pixels, strict=True)),
        "motion": _rounded(motion(small, fps)),
        "static": _rounded(static(small)),
        "blur": _rounded(blur(inside)),
        **{name: _rounded(value) for name, value in exposure(inside).items()},
        "flicker": _rounded(flicker(inside)),
        **signature(inside[hashed_frames(len(luma), fps)]),
    }


def _rounded(value: float) -> float | None:
    """To six digits, which no processor's rounding changes as a rule; None where it is not known."""
    return None if math.isnan(value) else float(f"{value:.6g}")


def hashed_frames(frames: int, fps: float) -> list[int]:
    """Numbers of the frames that are hashed: two a second, from the first on."""
    step = fps / HASHES_A_SECOND if fps else 1.0
    return [round(n * step) for n in range(frames) if round(n * step) < frames]


def signature(luma: np.ndarray) -> dict[str, list[str]]:
    """`hashing.Signature`'s looks and changes of the frames [F,H,W] that are hashed, each as hexadecimal digits, 16 a
    window."""
    wide = luma.astype(np.float64)
    changes = [[FLAT_HASH] * len(WINDOWS), *(perceptual_hashes(b - a) for a, b in zip(wide, wide[1:], strict=False))]
    looks = [perceptual_hashes(frame) for frame in wide]
    return {name: ["".join(f"{value:016x}" for value in each) for each in part]
            for name, part in (("looks", looks), ("changes", changes))}  # fmt: skip


def read_hashes(texts: Sequence[str]) -> list[list[int]]:
    """What `signature` wrote: [pictures][windows]."""
    return [[int(text[n : n + 16], 16) for n in range(0, len(text), 16)] for text in texts]


def borders(luma: np.ndarray) -> tuple[int, int, int, int]:
    """Rows at the top and the bottom, columns at the left and the right, that are black in all frames.

    Black is flat as well as dark. A line more is taken, which the bar's edge may have shaded. A picture that would lose
    more than half of a side is dark, and has none.
    """
    brightest, darkest = luma.max(axis=0), luma.min(axis=0)
    found: list[int] = []
    for axis in (1, 0):
        dark = (brightest.max(axis=axis) <= DARK) & (brightest.max(axis=axis) - darkest.min(axis=axis) <= FLAT)
        before, after = _leading(dark), _leading(dark[::-1])
        before, after = (n + 1 if n else 0 for n in (before, after))
        found += [0, 0] if before + after > LARGEST_BORDER * len(dark) else [before, after]
    return tuple(found)


def _leading(flags: np.ndarray) -> int:
    return len(flags) if flags.all() else int(np.argmin(flags))


def motion(luma: np.ndarray, fps: float) -> float:
    """`data.motion.motion_strength`, percent of the diagonal a second, over a few pairs of neighbours a second."""
    frames = len(luma)
    if frames < 2 or not fps:
        return math.nan
    pairs = max(1, min(frames - 1, round(FLOWS_A_SECOND * frames / fps)))
    first = [int((n + 0.5) * (frames - 1) / pairs) for n in range(pairs)]
    grey = (torch.from_numpy(luma[n : n + 2, ..., None].repeat(3, axis=3)) for n in first)
    return sum(motion_strength(pair, fps) for pair in grey) / pairs


def static(luma: np.ndarray) -> float:
    """Share of the pixels that stay the same, within a few levels, in all frames; NaN of one frame."""
    if len(luma) < 2:
        return math.nan
    return float((luma.max(axis=0) - luma.min(axis=0) <= STILL).mean())


def blur(luma: np.ndarray) -> float:
    """The median over a few frames of Crete, Dolmiere, Ladret & Nicolas 2007 ("The Blur Effect"), 0 (sharp) to 1."""
    picks = np.unique(np.linspace(0, len(luma) - 1, BLUR_FRAMES).round().astype(int))
    return float(np.median([_blur_effect(luma[n].astype(np.float32)) for n in picks]))


def _blur_effect(picture: np.ndarray) -> float:
    """Of [H,W]: how little its differences of neighbours shrink when it is blurred by 9 pixels, the larger of the two
    directions (their equations 1 to 6); 1 where it has no differences at all."""
    return max(_lost(np.moveaxis(picture, axis, -1)) for axis in (0, 1))


def _lost(picture: np.ndarray) -> float:
    """Along the last axis, borders repeated."""
    half = BLUR_WIDTH // 2
    padded = np.pad(picture, ((0, 0), (half + 1, half)), mode="edge").astype(np.float64)
    sums = padded.cumsum(axis=1)
    smooth = (sums[:, BLUR_WIDTH:] - sums[:, :-BLUR_WIDTH]) / BLUR_WIDTH
    sharp, soft = (np.abs(np.diff(each, axis=1)) for each in (picture, smooth))
    total = float(sharp.sum(dtype=np.float64))
    return 1.0 if total == 0 else 1.0 - float(np.maximum(0, sharp - soft).sum(dtype=np.float64)) / total


def exposure(luma: np.ndarray) -> dict[str, float]:
    clipped = ((luma <= BLACK) | (luma >= WHITE)).mean()
    spread = np.mean([frame.std(dtype=np.float64) for frame in luma])
    return {"brightness": float(luma.mean(dtype=np.float64)) / 255, "contrast": spread / 255, "clipped": float(clipped)}


def flicker(luma: np.ndarray) -> float:
    """Mean of |L[n] - (L[n-1] + L[n+1]) / 2| of the frames' mean luma L, in percent of white: what even fades do not
    have. NaN of fewer than 3 frames."""
    if len(luma) < 3:
        return math.nan
    mean = luma.mean(axis=(1, 2), dtype=np.float64)
    return float(np.abs(mean[1:-1] - (mean[:-2] + mean[2:]) / 2).mean()) / 2.55


def _shrunk(luma: np.ndarray, area: int) -> np.ndarray:
    """uint8 [F,h,w] of at most about `area` pixels, by means of whole blocks of equal size."""
    _, height, width = luma.shape
    by = math.ceil(math.sqrt(height * width / area))
    if by < 2 or min(height, width) < 2 * by:
        return luma
    sums = np.zeros((len(luma), height // by, width // by), np.uint16 if by <= 16 else np.uint32)
    for down in range(by):
        for across in range(by):
            sums += luma[:, down::by, across::by][:, : height // by, : width // by]
    return np.rint(sums / (by * by)).astype(np.uint8)
