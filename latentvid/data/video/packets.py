"""What a video's packets say of its frames without decoding them: when each is shown, and where decoding can begin."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ...errors import ClipError
from ..access.files import status
from .opening import Video, opened_for_times, truncated
from .pace import Pace, pace, view_pace
from .view import View

_VISIBLE = 0x10  # in the first byte of a VP8 frame; others are for reference only
CLOCKS_LEAP = ("mpegts", "mpeg")


@dataclass(frozen=True)
class FrameTimes:
    """In the stream's time base, ascending, int64: of every frame, and of those that decoding can begin with.

    last: how long the last frame is shown; 0 where nothing says.
    """

    shown: np.ndarray
    keys: np.ndarray
    last: int = 0


class Times(NamedTuple):
    """shown: int64 [N], ascending, when each frame is shown, in `tick` seconds. last: how long the last one is; 0 where
    nothing says."""

    shown: np.ndarray
    tick: Fraction
    last: int


class _Memory:
    """What is known of the files last seen, by path, size and date."""

    def __init__(self, most_frames: int) -> None:
        self._most, self._frames = most_frames, 0
        self._files: OrderedDict[tuple, tuple[Any, int]] = OrderedDict()

    def get(self, key: tuple) -> tuple[Any, int] | None:
        """(what is known, frames it counts for)"""
        found = self._files.pop(key, None)
        if found is not None:
            self._files[key] = found  # now the last to go
        return found

    def put(self, key: tuple, what: Any, frames: int) -> None:
        self._frames += frames - self._files.pop(key, (None, 0))[1]
        self._files[key] = what, frames
        while self._frames > self._most and len(self._files) > 1:
            self._frames -= self._files.popitem(last=False)[1][1]


_times, _paces = _Memory(most_frames=2_000_000), _Memory(most_frames=1_000_000)  # 24 MB in a process
_decoded = _Memory(most_frames=1_000_000)  # times that only decoding tells


def file_key(path: str | os.PathLike) -> tuple:
    found = status(path)
    return os.fspath(path), found.st_size, found.st_mtime_ns


class Packets:
    """Display times of the frames, in decoding order, and of the key frames, from the packets seen.

    keys_at: decoding times of the key frames, where packets without their pictures cannot say what they are.
    """

    def __init__(self, path: str | os.PathLike, video: Video, keys_at: Container[int] | None = None):
        self.path, self._keys_at = path, keys_at
        self.times: list[int | None] = []
        self.keys: list[int] = []
        self.leading = 0
        self._decoded_at: int | None = None
        self._leaps_back = False  # two recordings in one, each with its own clock
        self._hides = video.codec == "vp8"
        self._stored = video.format != "avi"  # there packets have places only, in decoding order
        self._latest: tuple[int, int] = (-(2**63), 0)  # (time, duration)

    def add(self, packet: Any) -> None:
        """Raises ClipError where the packet is damaged."""
        if packet.is_corrupt:
            raise truncated(self.path)
        if packet.size == 0 or packet.is_discard:  # the flush at the end; what an edit list hides
            return
        if self._hides and not memoryview(packet)[0] & _VISIBLE:
            return
        time = packet.pts if self._stored else packet.dts
        if packet.dts is not None:
            self._leaps_back |= self._decoded_at is not None and packet.dts < self._decoded_at
            self._decoded_at = packet.dts
        if time is not None and self.keys and time < self.keys[0]:
            self.leading += 1  # shown before the first key frame of a clip cut from a longer one: cannot be decoded
            return
        self.times.append(time)
        if time is not None:
            self._latest = max(self._latest, (time, packet.duration or 0))
            if packet.is_keyframe if self._keys_at is None else packet.dts in self._keys_at:
                self.keys.append(time)

    def frame_times(self) -> FrameTimes | None:
        """None where some frame has no time, or another's."""
        if None in self.times or not self.times or self._leaps_back:
            return None
        shown = np.sort(np.array(self.times, np.int64))
        if (np.diff(shown) == 0).any():
            return None
        return FrameTimes(shown, np.sort(np.array(self.keys, np.int64)), self._latest[1])


def frame_times(path: str | os.PathLike, video: Video) -> FrameTimes | None:
    """Reads through the file once, decoding nothing; the times of the files last seen are remembered.

    None where some frame has no time, or another's.
    """
    key = file_key(path)
    known = _times.get(key)
    if known is not None:
        return known[0]
    with opened_for_times(path, video) as (source, keys_at):
        packets = Packets(path, video, keys_at)
        for packet in source.packets():
            packets.add(packet)
    return remember(key, packets)


def remember(key: tuple, packets: Packets) -> FrameTimes | None:
    """The times that all of a file's packets give."""
    times = packets.frame_times()
    _times.put(key, times, len(packets.times))
    return times


def index_pace(video: Video) -> Pace | None:
    """The pace of an mp4 whose index lists all frames, at one rate; None where only the packets tell."""
    index = video.stream.index_entries
    if "mov" not in video.format or not 0 < video.stream.frames == len(index) or any(e.is_discard for e in index):
        return None
    times = np.sort(np.fromiter((entry.timestamp for entry in index), np.int64))
    if (np.diff(times) == 0).any():
        return None
    try:
        found = pace(times, video.stream.time_base, 0, _declared(video))
    except ValueError:
        return None
    return found if found.slots is None else None


def _declared(video: Video) -> Fraction | None:
    return video.stream.average_rate or video.stream.guessed_rate


def pace_by(path: str | os.PathLike, video: Video, times: FrameTimes | None) -> Pace:
    """The pace of frames shown at these times, remembered. Raises ClipError for times that no clip has."""
    if times is None:
        found = Pace(_declared(video) or Fraction(0))
    else:
        leaps = video.format in CLOCKS_LEAP
        try:
            found = pace(times.shown, video.stream.time_base, times.last, _declared(video), leaps=leaps)
        except ValueError as error:
            raise ClipError(path, "unreadable", f"{error}; export it again") from error
    return remember_pace(path, found)


def times_known(path: str | os.PathLike) -> bool:
    """Whether `frame_times` need not read the file."""
    return _times.get(file_key(path)) is not None


def view_by(path: str | os.PathLike, view: View, times: Times, *, leaps: bool = False) -> Pace:
    """The pace of what a view takes of frames shown at these times. Raises ClipError for times that no clip has."""
    try:
        return view_pace(*times, view, leaps=leaps)
    except ValueError as error:
        reason = "too-short" if view.start else "unreadable"
        raise ClipError(path, reason, f"{error}; correct the segment, or export it again") from error


def times_by_decoding(path: str | os.PathLike, decode: Callable[[], Times]) -> Times:
    """What `decode` finds where only decoding tells, remembered."""
    key = file_key(path)
    known = _decoded.get(key)
    if known is None:
        known = decode(), 0
        _decoded.put(key, known[0], len(known[0].shown))
    return known[0]


def times_of(path: str | os.PathLike, video: Video, decoded: Sequence[tuple[Any, Any]]) -> Times:
    """From (time, unit) of each decoded frame; at the declared rate where they do not say."""
    shown = [time for time, _ in decoded]
    if shown and None not in shown and all(a < b for a, b in zip(shown, shown[1:], strict=False)):
        return Times(np.array(shown, np.int64), decoded[0][1], 0)
    rate = _declared(video)
    if not rate or not shown:
        raise ClipError(path, "unknown-rate", "does not say when its frames are shown; export it again, as mp4 say")
    return Times(np.arange(len(shown)), 1 / rate, 0)


def remember_pace(path: str | os.PathLike, found: Pace) -> Pace:
    _paces.put(file_key(path), found, 1 if found.slots is None else len(found.slots))
    return found


def known_pace(path: str | os.PathLike) -> Pace | None:
    known = _paces.get(file_key(path))
    return None if known is None else known[0]
