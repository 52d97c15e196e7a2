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

from ..errors import ClipError
from .transforms import fit

T = TypeVar("T")

# swscale's quick paths are a grey level off on average, and more at edges; these cost about 2 ms a 1280x720 frame
ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_UNTAGGED = 2  # AVCOL_SPC_UNSPECIFIED
_RGB_IN_GBR = (2, 0, 1)


def quarter_turns(frame: Any) -> int:
    """Counter-clockwise quarter turns that make the frame upright."""
    return round(frame.rotation / 90) % 4


class _Picture:
    """A decoded frame's colours: upright planes, in FFmpeg's memory."""

    def __init__(self, frame: Any, reformatter: VideoReformatter) -> None:
        if frame.colorspace == _UNTAGGED:  # what players assume of an untagged file
            matrix = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
        else:
            matrix = None
        # swscale's accurate code for packed RGB gives the same values, but takes four times as long
        gbr = reformatter.reformat(frame, format="gbrp", src_colorspace=matrix, interpolation=ACCURATE, threads=1)
        turns = quarter_turns(frame)
        self._planes = [np.rot90(_plane(gbr, n), turns) for n in _RGB_IN_GBR]
        self.shape = (*self._planes[0].shape, 3)

    def write(self, pixels: np.ndarray) -> None:
        """Into uint8 [H,W,3]. (swscale could mix them too, but in memory of its own that is new for every frame.)"""
        for colour, plane in enumerate(self._planes):
            pixels[..., colour] = plane


def _plane(frame: Any, n: int) -> np.ndarray:
    """uint8 [H,W], in the frame's own memory."""
    plane = frame.planes[n]  # its rows may be longer than the picture is wide
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]


class _Converter:
    """Decoded frames to pictures of one size."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = path
        self._shape: tuple[int, ...] | None = None
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> _Picture:
        picture = _Picture(frame, self._reformatter)
        if picture.shape != (self._shape or picture.shape):
            raise ClipError(self.path, "unreadable", "changes its size half-way; cut it there or export it again")
        self._shape = picture.shape
        return picture


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
        picture = self._convert(frame)
        if self.length is None:
            self._list.append(np.empty(picture.shape, np.uint8))
            picture.write(self._list[-1])
        else:
            if self._array is None:
                self._array = np.empty((self.length, *picture.shape), np.uint8)
            picture.write(self._array[self.filled])
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
    `offsets` and its uint8 [F,H,W,3]. size: (H, W) that frames are fitted to as they come, so that no window is in
    memory at its native size; None: that one. results: what `then` made of each.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        offsets: Sequence[int],
        frames: int,
        then: Callable[[int, Tensor], T],
        size: tuple[int, int] | None = None,
    ) -> None:
        self.offsets, self.frames, self.then, self.size = offsets, frames, then, size
        self.filled = 0
        self.results: list[T | None] = [None] * len(offsets)
        self._convert = _Converter(path)
        self._open: dict[int, np.ndarray] = {}
        self._room: np.ndarray | None = None  # [1,H,W,3] for a frame of the native size
        self._left = len(offsets)

    def add(self, frame: Any) -> bool:
        """Converts a decoded frame if a window wants it; True when all are whole."""
        places = [(n, self.filled - offset) for n, offset in enumerate(self.offsets)]
        places = [(n, place) for n, place in places if 0 <= place < self.frames]
        if places:
            self._write(self._convert(frame), places)
        for n, place in places:
            if place == self.frames - 1:
                self.results[n] = self.then(n, torch.from_numpy(self._open.pop(n)))
                self._left -= 1
        self.filled += 1
        return self._left == 0

    def _write(self, picture: _Picture, places: Sequence[tuple[int, int]]) -> None:
        """Into the windows, at these places."""
        size = self.size or picture.shape[:2]
        for n, place in places:
            if place == 0:
                self._open[n] = np.empty((self.frames, *size, 3), np.uint8)
        rooms = [self._open[n][place] for n, place in places]
        if size == picture.shape[:2]:
            for room in rooms:
                picture.write(room)
            return
        if self._room is None:
            self._room = np.empty((1, *picture.shape), np.uint8)
        picture.write(self._room[0])
        fitted = fit(torch.from_numpy(self._room), *size)[0].numpy()
        for room in rooms:
            room[:] = fitted
