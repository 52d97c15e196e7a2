"""Decoded frames become RGB pixels: windows of them, converted once, when they are sure to be wanted.

Axes: F frames, H height, W width.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from torch import Tensor

from latentvid.errors import ClipError

T = TypeVar("T")

# swscale's quick paths are a grey level off on average, and more at edges; these cost about 2 ms a 1280x720 frame
ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_UNTAGGED = 2  # AVCOL_SPC_UNSPECIFIED


def quarter_turns(frame: Any) -> int:
    """Counter-clockwise quarter turns that make the frame upright."""
    return round(frame.rotation / 90) % 4


class _Converter:
    """Decoded frames to upright pictures of one size."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = path
        self._shape: tuple[int, ...] | None = None
        self._to_planes, self._to_pixels = VideoReformatter(), VideoReformatter()

    def __call__(self, frame: Any) -> np.ndarray:
        """-> uint8 [H,W,3], in memory of FFmpeg's that it keeps alive."""
        if frame.colorspace == _UNTAGGED:  # what players assume of an untagged file
            matrix = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
        else:
            matrix = None
        # by way of planes: swscale's accurate code for packed RGB gives the same values, but takes three times as long
        planes = self._to_planes.reformat(
            frame, format="gbrp", src_colorspace=matrix, interpolation=ACCURATE, threads=1
        )
        rgb = np.rot90(_rows(self._to_pixels.reformat(planes, format="rgb24", threads=1)), quarter_turns(frame))
        if rgb.shape != (self._shape or rgb.shape):
            raise ClipError(self.path, "unreadable", "changes its size half-way; cut it there or export it again")
        self._shape = rgb.shape
        return rgb


def _rows(frame: Any) -> np.ndarray:
    """uint8 [H,W,3] of an rgb24 frame, in the frame's own memory."""
    plane = frame.planes[0]  # its rows may be longer than the picture is wide
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : 3 * frame.width]
    return rows.reshape(frame.height, frame.width, 3)


class Frames:
    """RGB frames of one clip; a known length is filled in place, so that nothing is held twice."""

    def __init__(self, path: str | os.PathLike, length: int | None) -> None:
        self.length = length
        self.filled = 0
        self._convert = _Converter(path)
        self._array: np.ndarray | None = None
        self._list: list[np.ndarray] = []

    def add(self, frame: Any) -> bool:
        """Converts and keeps a decoded frame; True when there are as many as wanted."""
        rgb = self._convert(frame)
        if self.length is None:
            self._list.append(rgb.copy())
        else:
            if self._array is None:
                self._array = np.empty((self.length, *rgb.shape), np.uint8)
            self._array[self.filled] = rgb
        self.filled += 1
        return self.filled == self.length

    def pixels(self) -> Tensor:
        """-> uint8 [F,H,W,3]"""
        return torch.from_numpy(np.stack(self._list) if self._array is None else self._array[: self.filled])

    def restart(self, length: int) -> Tensor:
        """The pixels so far; `length` more, of the same size, are kept from here on."""
        pixels = self.pixels()
        self.length, self.filled, self._array = length, 0, None
        return pixels


class Windows(Generic[T]):
    """Several windows of frames that are decoded in one go; each goes to `then` when it is whole, and is let go.

    offsets: first frame of each window, counted from the first that is added. then: is given a window's place in
    `offsets` and its uint8 [F,H,W,3]. results: what it made of each.
    """

    def __init__(
        self, path: str | os.PathLike, offsets: Sequence[int], frames: int, then: Callable[[int, Tensor], T]
    ) -> None:
        self.offsets, self.frames, self.then = offsets, frames, then
        self.filled = 0
        self.results: list[T | None] = [None] * len(offsets)
        self._convert = _Converter(path)
        self._open: dict[int, np.ndarray] = {}
        self._left = len(offsets)

    def add(self, frame: Any) -> bool:
        """Converts a decoded frame if a window wants it; True when all are whole."""
        places = [(n, self.filled - offset) for n, offset in enumerate(self.offsets)]
        places = [(n, place) for n, place in places if 0 <= place < self.frames]
        rgb = self._convert(frame) if places else None
        for n, place in places:
            if place == 0:
                self._open[n] = np.empty((self.frames, *rgb.shape), np.uint8)
            self._open[n][place] = rgb
            if place == self.frames - 1:
                self.results[n] = self.then(n, torch.from_numpy(self._open.pop(n)))
                self._left -= 1
        self.filled += 1
        return self._left == 0
