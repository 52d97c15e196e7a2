"""Which part of a file is a clip, and at which rate its frames are taken: by their times, whatever the file's own rate.

Of a file of frames shown at the times t_k, a view at `rate` shows at each time n / rate after its first frame the frame
that is nearest, as FFmpeg's `fps` filter does (`round=near`): t_k is rounded to the row of n / rate, halves up; of
frames with the same place the last is shown, and it stays until the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np

Count = TypeVar("Count", int, np.ndarray)

STANDARD = tuple(Fraction(n) for n in (8, 10, 12, 12.5, 15, 24, 25, 30, 48, 50, 60, 72, 90, 100, 120, 144, 240))
STANDARD += tuple(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120))
_ROUNDED = 2e-4  # 23.98 is meant for 24000/1001; 24 is not
EARLY = 0.1  # of a frame's interval: times of a segment may be rounded, to milliseconds say


@dataclass(frozen=True)
class View:
    """rate: frames taken a second. start, end: of the part, in seconds since the file's first frame; a frame belongs
    to it that is first shown from `start` to before `end`. slack: largest share of a window's frames, rounded up to
    whole frames, that may repeat the frame before."""

    rate: Fraction
    start: float = 0.0
    end: float = math.inf
    slack: float = 1.0


def exact(fps: float) -> Fraction:
    """The rate that a table's number stands for: a standard one where it is that, rounded."""
    near = min(STANDARD, key=lambda rate: abs(rate - fps))
    return near if abs(float(near) - fps) <= _ROUNDED * fps else Fraction(fps).limit_denominator(100_000)


def taken(frames: Count, own: Fraction, rate: Fraction) -> Count:
    """How many frames a view at `rate` takes of so many that are shown at the rate `own`."""
    ratio = rate / own
    up, down = ratio.numerator, ratio.denominator
    return (2 * (frames - 1) * up + down) // (2 * down) + 1


def place(seconds: Count, fps: Count) -> Count:
    """Number of the first frame of a row at `fps` that is shown at or after a time."""
    return np.maximum(np.ceil(seconds * fps - EARLY), 0)
