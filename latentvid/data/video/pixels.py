"""Decoded frames become clips: windows of them, converted once, when they are sure to be wanted.

Axes: F frames, H height, W width.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..transforms import fit
from .showing import Converter, Deinterlacer, Picture

T = TypeVar("T")


class Frames:
    """RGB frames of one clip; a known length is filled in place, so that nothing is held twice."""

    def __init__(self, convert: Converter, length: int | None) -> None:
        self.length = length
        self.filled = 0
        self._convert = convert
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
        convert: Converter,
        offsets: Sequence[int],
        frames: int,
        then: Callable[[int, Tensor], T],
        size: tuple[int, int] | None = None,
    ) -> None:
        self.offsets, self.frames, self.then, self.size = offsets, frames, then, size
        self.filled = 0
        self.results: list[T | None] = [None] * len(offsets)
        self._convert = convert
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

    def _write(self, picture: Picture, places: Sequence[tuple[int, int]]) -> None:
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


class Repeated:
    """Adds each frame to a sink (`Frames`, `Windows`) as often as it is shown; None: each once."""

    def __init__(self, sink: Any, repeats: Sequence[int] | None) -> None:
        self.sink, self._repeats, self._taken = sink, repeats, 0

    def add(self, frame: Any) -> bool:
        """True when the sink has all it wants."""
        times = 1 if self._repeats is None else self._repeats[self._taken] if self._taken < len(self._repeats) else 0
        self._taken += 1
        return any([self.sink.add(frame) for _ in range(times)])


class Progressive:
    """Adds frames to a sink, interlaced ones as whole ones: for these the frame before and the one after count too.

    taken: frames that came in. A frame that waits for the next is handed on by `add` of that, or by `end`.
    """

    def __init__(self, sink: Repeated) -> None:
        self.sink, self.taken = sink, 0
        self._before: Any = None
        self._whole: Deinterlacer | None = None
        self._skip = 0

    def before(self, frame: Any) -> None:
        """What is shown before the first frame that is added."""
        self._before = frame

    def add(self, frame: Any) -> bool:
        """True when the sink has all it wants."""
        self.taken += 1
        if self._whole is None and not frame.interlaced_frame:
            self._before = frame
            return self.sink.add(frame)
        whole = []
        if self._whole is None:
            self._whole = Deinterlacer(frame)
            if self._before is not None:
                self._skip = 1
                whole += self._whole.push(self._before)
        return self._hand_on(whole + self._whole.push(frame))

    def end(self) -> bool:
        """No frame follows."""
        return self._whole is not None and self._hand_on(self._whole.push(None))

    def _hand_on(self, frames: list[Any]) -> bool:
        for frame in frames:
            if self._skip:
                self._skip -= 1
            elif self.sink.add(frame):
                return True
        return False
