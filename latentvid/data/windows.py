"""Which windows of its manifests' files a run trains on, and what becomes of their pixels.

Axes: F frames, H height, W width of a window after resizing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..rng import generator
from .manifest.columns import Column, Lookup, distinct_rows
from .manifest.samples import Samples
from .shared import share_arrays
from .transforms import from_uint8, legal_frames, legal_size

MOST_WINDOWS = 2**27  # which take 1.5 GB


@dataclass(frozen=True, kw_only=True)
class Transform:
    """What becomes of a file's pixels, as far as shapes go; part of a latent cache's key.

    spatial_stride, temporal_stride: sides are multiples of the one, frames 1 + a multiple of the other.
    max_area: largest height x width in pixels (None: native). max_frames: frames of a window; longer clips are cut
    into windows that follow each other, a last remainder shorter than a window left out.
    crop: side of the random square that is cut from each window, where it is larger (None: whole frames).
    flip: mirror half of the samples (only for captions that do not say left or right).
    """

    spatial_stride: int
    temporal_stride: int
    max_area: int | None = None
    max_frames: int = 17
    crop: int | None = None
    flip: bool = False

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
    """Frames [start, start + frames) of a manifest's sample, resized to height x width, then cut to the crop."""

    sample: int
    start: int
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Clip:
    """pixels: uint8 [F,H,W,3]; a quarter of the memory, and of the way to the device, that floats would take.

    index: the window it was read from; `replaced`: that is not the one that was asked for.
    """

    pixels: Tensor
    caption: str
    index: int
    replaced: bool = False

    @property
    def video(self) -> Tensor:
        """float32 [3,F,H,W] in [-1,1]"""
        return from_uint8(self.pixels)


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


def cut_windows(samples: Samples, transform: Transform) -> tuple[Windows, np.ndarray]:
    """The windows, and bool [samples]: where at least one stride fits."""

    def legal(size: tuple[int, int]) -> tuple[int, int] | None:
        try:
            return legal_size(*size, stride=transform.spatial_stride, max_area=transform.max_area)
        except UserError:
            return None

    size = distinct_rows(samples.height, samples.width).map(legal)
    fits = size.map(lambda size: size is not None).array().astype(bool)
    kept = np.flatnonzero(fits).astype(np.int32)
    lengths = distinct_rows(np.minimum(samples.frames[kept], transform.max_frames))
    frames = lengths.map(lambda row: legal_frames(*row, transform.temporal_stride)).array().astype(np.int32)
    shapes = distinct_rows(frames, size.of[kept]).map(lambda row: (row[0], *size.table[row[1]]))
    count = samples.frames[kept] // frames
    if (total := int(count.sum(dtype=np.int64))) > MOST_WINDOWS:
        most = int(np.argmax(count))
        raise UserError(
            f"{total:,} windows of {transform.max_frames} frames are more than {MOST_WINDOWS:,}: correct the `frames` "
            f"of {samples.name(int(kept[most]))} ({samples.frames[kept[most]]:,}), or give fewer clips"
        )
    of = np.repeat(np.arange(len(kept), dtype=np.int32), count)
    first = (np.cumsum(count) - count).astype(np.int32)
    start = (np.arange(len(of), dtype=np.int32) - first[of]) * frames[of]
    columns = share_arrays({"sample": kept[of], "start": start, "size": shapes.of[of]})
    return Windows(columns["sample"], columns["start"], Lookup(shapes.table, columns["size"])), fits
