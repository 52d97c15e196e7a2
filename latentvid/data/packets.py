"""What a video's packets say of its frames without decoding them: when each is shown, and where decoding can begin."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentvid.errors import ClipError


@dataclass(frozen=True)
class FrameTimes:
    """In the stream's time base, ascending, int64: of every frame, and of those that decoding can begin with."""

    shown: np.ndarray
    keys: np.ndarray


class _Memory:
    """The times of the files last seen, by path, size and date."""

    def __init__(self, most_frames: int) -> None:
        self._most, self._frames = most_frames, 0
        self._files: OrderedDict[tuple, FrameTimes] = OrderedDict()

    def get(self, key: tuple) -> FrameTimes | None:
        times = self._files.pop(key, None)
        if times is not None:
            self._files[key] = times  # now the last to go
        return times

    def put(self, key: tuple, times: FrameTimes) -> None:
        self._files[key] = times
        self._frames += len(times.shown)
        while self._frames > self._most and len(self._files) > 1:
            self._frames -= len(self._files.popitem(last=False)[1].shown)


_memory = _Memory(most_frames=2_000_000)  # 16 MB in a process


class Packets:
    """Display times of the frames, in decoding order, and of the key frames, from the packets seen."""

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self.times: list[int | None] = []
        self.keys: list[int] = []
        self.leading = 0

    def add(self, packet: Any) -> None:
        """Raises ClipError where the packet is damaged."""
        if packet.is_corrupt:
            raise truncated(self.path)
        if packet.size == 0 or packet.is_discard:  # the flush at the end; what an edit list hides
            return
        time = packet.pts
        if time is not None and self.keys and time < self.keys[0]:
            self.leading += 1  # shown before the first key frame of a clip cut from a longer one: cannot be decoded
            return
        self.times.append(time)
        if time is not None and packet.is_keyframe:
            self.keys.append(time)


def frame_times(path: str | os.PathLike, container: Any, stream: Any) -> FrameTimes | None:
    """Reads through the file once, decoding nothing; the times of the files last seen are remembered.

    None where some frame has no time, or another's.
    """
    status = os.stat(path)
    key = (os.fspath(path), status.st_size, status.st_mtime_ns)
    times = _memory.get(key)
    if times is not None:
        return times
    packets = Packets(path)
    for packet in container.demux(stream):
        packets.add(packet)
    if None in packets.times:
        return None
    shown = np.sort(np.array(packets.times, np.int64))
    if (np.diff(shown) == 0).any():
        return None
    times = FrameTimes(shown, np.sort(np.array(packets.keys, np.int64)))
    _memory.put(key, times)
    return times


def truncated(path: str | os.PathLike) -> ClipError:
    """The fault of a file that ends too soon."""
    return ClipError(path, "truncated", "is cut short; copy or export it again")
