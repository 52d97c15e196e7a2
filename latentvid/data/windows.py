"""Which windows of its manifests' files a run trains on, and what becomes of their pixels.

Axes: F frames, H height, W width of a window after resizing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..rng import generator
from .manifest.columns import Column, Lookup, distinct_rows
from .manifest.samples import Samples
from .shared import share_arrays
from .transforms import from_uint8, legal_frames, legal_size
from .video.view import exact, place, taken

MOST_WINDOWS = 2**27  # which take 1.5 GB


@dataclass(frozen=True, kw_only=True)
class Transform:
    """What becomes of a file's pixels, as far as shapes go; part of a latent cache's key.

    spatial_stride, temporal_stride: sides are multiples of the one, frames 1 + a multiple of the other.
    max_area: largest height x width in pixels (None: native). max_frames: frames of a window; longer clips are cut
    into windows that follow each other, a last remainder shorter than a window left out.
    fps: frames a second that are taken of each clip, by their times, whatever its own rate; (low, high): as many as it
    has, but at least and at most these; None: as it is. fps_slack: share by which a clip's own rate may lie below.
    crop: side of the random square that is cut from each window, where it is larger (None: whole frames).
    flip: mirror half of the samples (only for captions that do not say left or right).
    """

    spatial_stride: int
    temporal_stride: int
    max_area: int | None = None
    max_frames: int = 17
    crop: int | None = None
    flip: bool = False
    fps: float | tuple[float, float] | None = None
    fps_slack: float = 0.0

    def key(self) -> dict[str, Any]:
        """Its settings, those of the rate only where they change something: they are younger than the others."""
        unused = ("fps", "fps_slack") if self.fps is None else ()
        return {name: value for name, value in asdict(self).items() if name not in unused}

    def rate(self, own: float) -> Fraction | None:
        """At which rate the frames of a clip of that own rate are taken; None: all of them."""
        if self.fps is None or own == 0:
            return None
        if isinstance(self.fps, tuple):
            low, high = map(exact, self.fps)
            return min(max(exact(own), low), high) if not low <= exact(own) <= high else None
        return exact(self.fps)

    def too_slow(self, own: float) -> bool:
        """Whether frames of a clip of that own rate would have to be invented, beyond what the slack allows."""
        rate = self.rate(own)
        return rate is not None and exact(own) < rate * (1 - Fraction(self.fps_slack).limit_denominator(10**6))

    def augment(self, seed: int, number: int, pixels: Tensor) -> Tensor:
        """A window's [F,H,W,3] with the crop and the flip of global sample number `number`."""
        side = self.crop
        if side is not None:
            free = torch.tensor([max(0, n - side) for n in pixels.shape[1:3]])
            top, left = (torch.rand(2, generator=generator(seed, number, "crop")) * (free + 1)).long().tolist()
            pixels = pixels[:, top : top + side, left : left + side]
        if self.flip and torch.rand((), generator=generator(seed, number, "flip")) < 0.5:
            pixels = pixels.flip(2)
        return pixels.contiguous()


@dataclass(frozen=True, slots=True)
class Window:
    """Frames [start, start + frames) of a manifest's sample, resized to height x width, then cut to the crop.

    Frames are numbered as the file has them, or in what a `View` takes of the sample where it has another rate.
    """

    sample: int
    start: int
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Clip:
    """pixels: uint8 [F,H,W,3]; a quarter of the memory, and of the way to the device, that floats would take.

    index: the window it was read from; `replaced`: that is not the one that was asked for. references: uint8 [F,H,W,3]
    each, of those that it is shown. masks: uint8 [F,H,W,3], or [1,H,W,3] of a picture, white where it is to be made.
    """

    pixels: Tensor
    caption: str
    index: int
    replaced: bool = False
    references: tuple[Tensor, ...] = ()
    masks: tuple[Tensor, ...] = ()

    @property
    def video(self) -> Tensor:
        """float32 [3,F,H,W] in [-1,1]"""
        return from_uint8(self.pixels)


def drawn_caption(count: int, seed: int, number: int) -> int:
    """Which of so many captions global sample number `number` is shown with."""
    return 0 if count == 1 else int(torch.randint(count, (), generator=generator(seed, number, "caption")))


@dataclass(frozen=True, eq=False, repr=False)
class Windows(Column[Window]):
    """sample, start: int32 [N]. sizes: (frames, height, width) of each."""

    sample: np.ndarray
    start: np.ndarray
    sizes: Lookup[tuple[int, int, int]]

    def __len__(self) -> int:
        return len(self.start)

    def _value(self, i: int) -> Window:
        return Window(int(self.sample[i]), int(self.start[i]), *self.sizes[i])


@dataclass(frozen=True)
class Shown:
    """What of each sample is shown: int32 [samples], the number of its first frame, and how many there are.

    reason: uint8 [samples], in `REASONS`, why none is; 0 of the others.
    """

    first: np.ndarray | None  # None: 0 of each
    frames: np.ndarray
    reason: np.ndarray


REASONS = ("", "smaller-than-one-stride", "slower-than-fps", "unknown-rate", "segment-outside-the-file")


def shown_of(samples: Samples, transform: Transform) -> Shown:
    """The samples' frames at the rates that are asked for, in their segments."""
    reason = np.zeros(len(samples), np.uint8)
    if transform.fps is None and samples.start is None:
        return Shown(None, samples.frames, reason)
    single = samples.is_image
    fps = np.where(single, 1.0, samples.fps)
    reason[fps == 0] = REASONS.index("unknown-rate")
    first, count = np.zeros(len(samples), np.int64), samples.frames.astype(np.int64)
    if samples.start is not None:
        timed = np.flatnonzero(~single & (fps > 0))
        first[timed] = np.minimum(place(samples.start[timed], fps[timed]), count[timed])
        count[timed] = np.minimum(place(samples.end[timed], fps[timed]), count[timed]) - first[timed]
        reason[count < 1] = REASONS.index("segment-outside-the-file")
    rates, of = np.unique(samples.fps, return_inverse=True)
    for number, own in enumerate(rates.tolist()):
        if (rate := transform.rate(own)) is None:
            continue
        at = np.flatnonzero((of == number) & (reason == 0))
        first[at], count[at] = 0, taken(count[at], exact(own), rate)
        if transform.too_slow(own):
            reason[at] = REASONS.index("slower-than-fps")
    return Shown(first.astype(np.int32), np.maximum(count, 1).astype(np.int32), reason)


def cut_windows(samples: Samples, transform: Transform) -> tuple[Windows, Shown]:
    """The windows, and of the samples what they are cut from."""

    def legal(size: tuple[int, int]) -> tuple[int, int] | None:
        try:
            return legal_size(*size, stride=transform.spatial_stride, max_area=transform.max_area)
        except UserError:
            return None

    shown = shown_of(samples, transform)
    size = distinct_rows(samples.height, samples.width).map(legal)
    fits = size.map(lambda size: size is not None).array().astype(bool)
    shown.reason[~fits] = REASONS.index("smaller-than-one-stride")
    kept = np.flatnonzero(shown.reason == 0).astype(np.int32)
    lengths = distinct_rows(np.minimum(shown.frames[kept], transform.max_frames))
    frames = lengths.map(lambda row: legal_frames(*row, transform.temporal_stride)).array().astype(np.int32)
    shapes = distinct_rows(frames, size.of[kept]).map(lambda row: (row[0], *size.table[row[1]]))
    count = shown.frames[kept] // frames
    if (total := int(count.sum(dtype=np.int64))) > MOST_WINDOWS:
        most = int(np.argmax(count))
        raise UserError(
            f"{total:,} windows of {transform.max_frames} frames are more than {MOST_WINDOWS:,}: correct the `frames` "
            f"of {samples.name(int(kept[most]))} ({samples.frames[kept[most]]:,}), or give fewer clips"
        )
    of = np.repeat(np.arange(len(kept), dtype=np.int32), count)
    first = (np.cumsum(count) - count).astype(np.int32)
    start = (np.arange(len(of), dtype=np.int32) - first[of]) * frames[of]
    if shown.first is not None:
        start += shown.first[kept[of]]
    columns = share_arrays({"sample": kept[of], "start": start, "size": shapes.of[of]})
    return Windows(columns["sample"], columns["start"], Lookup(shapes.table, columns["size"])), shown
