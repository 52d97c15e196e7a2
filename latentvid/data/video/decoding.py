"""Decoding exactly the frames that are asked for, from the key frame before them where the frames' times vouch."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np

from ...errors import ClipError
from ...words import counted
from ..access.files import is_plain
from .opening import Video, opened_video, truncated
from .pace import Pace
from .packets import (
    CLOCKS_LEAP,
    FrameTimes,
    Packets,
    Times,
    file_key,
    frame_times,
    index_pace,
    known_pace,
    pace_by,
    remember,
    remember_pace,
    times_by_decoding,
    times_known,
    times_of,
    view_by,
)
from .pixels import Frames, Progressive, Repeated, Windows
from .showing import Converter
from .view import View

Sink = TypeVar("Sink", Frames, Windows)  # what takes frames
Make = Callable[[Converter, int | None], Sink]  # for so many frames; None: all that come

_PACKETS_ARE_NOT_FRAMES = frozenset({"mpeg4", "msmpeg4v3"})  # may be invisible or hold two: only decoding counts
_MARKS_UNREFERENCED = frozenset({"h264"})  # certain for every later frame (HEVC's marks are for its own layer only)
_STORES_DISPLAY_TIMES = ("mov", "matroska", "mpegts", "flv")  # AVI and raw streams do not: their times are guesses
_NOT_INTERLACED = (0, 1)  # field orders: unknown, progressive


@dataclass(frozen=True, slots=True)
class Span:
    """Frames asked for, and the file's own (coded) ones that show them.

    count: coded frames; None: all from `first` on. repeats: how often each of these is shown; None: once.
    """

    start: int
    frames: int | None
    first: int
    count: int | None
    repeats: list[int] | None

    @classmethod
    def of(
        cls, path: str | os.PathLike, found: Pace, start: int, frames: int | None, view: View | None = None
    ) -> "Span":
        """Of a view the frames may go on after the end, as far as `check_repeats` lets them."""
        if found.slots is None:
            return cls(start, frames, start, frames, None)
        if start + (1 if view else frames or 1) > found.frames:
            raise too_short(path, found.frames, start, frames)
        frames = found.frames - start if frames is None else frames
        first, repeats = found.coded(start, frames)
        return cls(start, frames, first, len(repeats), repeats)

    def sink(self, make: Make, convert: Converter, count: int | None = None) -> Progressive:
        """count: coded frames, where they were not known."""
        frames = count if self.frames is None else self.frames
        return Progressive(Repeated(make(convert, frames), self.repeats))


def converter_of(path: str | os.PathLike, video: Video) -> Converter:
    return Converter(path, video.stream.sample_aspect_ratio)


def pace_of(path: str | os.PathLike, video: Video) -> tuple[Pace, bool]:
    """(the pace of a file, whether the container was read through for it)"""
    if (found := known_pace(path)) is not None:
        return found, False
    if (found := index_pace(video)) is not None:
        return remember_pace(path, found), False
    times = frame_times(path, video)
    found = pace_by(path, video, times)
    if found.slots is not None and video.codec in _PACKETS_ARE_NOT_FRAMES:
        found = _remember_decoded(path, _decoded_times(path))
    return found, True


def pace_of_view(path: str | os.PathLike, video: Video, view: View) -> tuple[Pace, bool]:
    """As `pace_of`, of what a view takes of a file."""
    read_through, leaps = False, video.format in CLOCKS_LEAP
    if video.codec not in _PACKETS_ARE_NOT_FRAMES:
        read_through = not times_known(path)
        times = frame_times(path, video)
        if times is not None:
            return view_by(
                path, view, Times(times.shown, video.stream.time_base, times.last), leaps=leaps
            ), read_through
    times = times_by_decoding(path, lambda: times_of(path, video, _decoded_times(path)))
    return view_by(path, view, times, leaps=leaps), read_through


def check_repeats(path: str | os.PathLike, found: Pace, view: View, starts: Sequence[int], frames: int) -> None:
    """Raises ClipError where a window repeats more frames than the view allows."""
    most = math.ceil(view.slack * frames)
    for start in starts:
        if found.repeats(start, frames) <= most:
            continue
        if start + frames > found.frames:
            raise too_short(path, found.frames, start, frames)
        begin = view.start + start / found.rate
        raise ClipError(
            path,
            "slower-than-fps",
            f"has fewer frames than {float(view.rate):g} a second from {float(begin):.2f} s on: "
            f"{found.repeats(start, frames)} of {frames} would be shown again; lower data.fps, or raise data.fps_slack",
        )


def _decoded_times(path: str | os.PathLike) -> list[tuple[Any, Any]]:
    """(time, unit) of each frame, by decoding all."""
    with opened_video(path) as video:
        return [(frame.pts, frame.time_base) for frame in decoded(path, video)]


def _remember_decoded(path: str | os.PathLike, times: list[tuple[Any, Any]]) -> Pace:
    shown = [time for time, _ in times]
    with opened_video(path) as video:
        known = None not in shown and all(a < b for a, b in zip(shown, shown[1:], strict=False)) and len(shown) > 0
        return pace_by(path, video, FrameTimes(np.array(shown, np.int64), np.zeros(0, np.int64)) if known else None)


def too_short(path: str | os.PathLike, have: int, start: int, frames: int | None) -> ClipError:
    asked = f"frames {start} to {start + frames - 1}" if frames else f"frames from {start} on"
    fix = "ask for fewer frames or correct `frames` in the manifest"
    return ClipError(path, "too-short", f"has {counted(have, 'frame')}, but {asked} were asked for; {fix}")


def first_frame_s(path: str | os.PathLike) -> Fraction:
    """When a video's first frame is shown, in seconds, on the clock that its sound has too."""
    with opened_video(path) as video:
        times = frame_times(path, video)
        start = video.stream.start_time or 0 if times is None else int(times.shown[0])
        return start * video.stream.time_base


def looked_at(path: str | os.PathLike, video: Video) -> tuple[Any, int, Pace]:
    """(the first decoded frame or None, number of frames as they are shown, pace), read on from the file's start"""
    first, count, found = _first_and_count(path, video)
    if first is not None and count is None:
        times = _decoded_times(path)
        count, found = len(times), _remember_decoded(path, times)
    return first, count if found.slots is None else found.frames, found


def _first_and_count(path: str | os.PathLike, video: Video) -> tuple[Any, int | None, Pace]:
    """As `looked_at`, with the number of coded frames; None where only decoding counts."""
    unsure = video.codec in _PACKETS_ARE_NOT_FRAMES
    indexed = None if unsure else index_pace(video)
    first, packets, key = None, Packets(path, video), file_key(path)
    for packet in video.packets():
        packets.add(packet)
        decoded = video.decode(packet) if first is None else []
        if decoded:
            first = decoded[0]
            if indexed is not None and not packets.leading:
                return first, video.stream.frames, remember_pace(path, indexed)
    times = remember(key, packets)
    fields = video.codec == "h264" and video.stream.codec_context.field_order not in _NOT_INTERLACED
    if first is None or unsure or (fields and times is None):  # a packet may hold one field alone
        return first, None, Pace(Fraction(0))
    return first, len(packets.times), pace_by(path, video, times)


def decoded(path: str | os.PathLike, video: Video, lean_before: int | None = None, by_key: bool = False) -> Iterator:
    """All frames; of those shown before `lean_before`, only the ones that others refer to need be decoded.

    by_key: none at all where the first packet is no key frame, whatever an index said.
    """
    for packet in video.packets():
        if by_key and not packet.is_keyframe:
            return
        by_key = False
        if packet.is_corrupt:
            raise truncated(path)
        if lean_before is not None:
            unseen = packet.pts is not None and packet.pts < lean_before
            video.decoder.skip_frame = "NONREF" if unseen else "DEFAULT"
        yield from video.decode(packet)


def undamaged(path: str | os.PathLike, frames: Iterator[Any]) -> Iterator[Any]:
    for frame in frames:
        if frame.is_corrupt:
            raise ClipError(path, "unreadable", "has damaged frames; export it again")
        yield frame


def decode_after_seek(path: str | os.PathLike, video: Video, span: Span, make: Make, convert: Converter) -> Sink | None:
    """Decodes from the key frame before the window; None where times cannot vouch that the window is exact."""
    if video.codec in _PACKETS_ARE_NOT_FRAMES or not video.format.startswith(_STORES_DISPLAY_TIMES):
        return None
    times = frame_times(path, video)
    if times is None:
        return None
    count = len(times.shown) - span.first if span.count is None else span.count
    if count < 1 or span.first + count > len(times.shown):
        return None  # decoding from the start tells what is missing
    before, *wanted = times.shown[span.first - 1 : span.first + count + 1].tolist()  # and the neighbours, for fields
    keys = times.keys[: np.searchsorted(times.keys, wanted[0], "right")].tolist()
    tries = [(key, False) for key in keys[:-3:-1]]  # an open GOP may need the one before
    if video.codec in _MARKS_UNREFERENCED:
        tries = [(keys[-1], True), *tries] if keys else []
    for key, lean in tries:
        video.seek(key)
        sink, previous = span.sink(make, convert, count), None
        for frame in decoded(path, video, wanted[0] if lean else None, by_key=not is_plain(path)):
            if frame.pts is None or frame.pts < wanted[0]:
                previous = frame
                continue
            if sink.taken == 0:
                if frame.interlaced_frame and (previous is None or previous.pts != before):
                    break
                sink.before(previous)
            if sink.taken == len(wanted) or frame.pts != wanted[sink.taken] or frame.is_corrupt:
                break  # a frame is missing: try from further back
            if sink.add(frame):
                return sink.sink.sink
        else:
            if sink.taken == count and sink.end():
                return sink.sink.sink
    return None


def decode_from_start(path: str | os.PathLike, video: Video, span: Span, make: Make, convert: Converter) -> Sink:
    sink, seen = span.sink(make, convert), 0
    for frame in undamaged(path, decoded(path, video)):
        seen += 1
        if seen == span.first:
            sink.before(frame)
        if seen > span.first and sink.add(frame):
            break
    else:
        sink.end()
    filled = sink.sink.sink.filled
    if filled == 0 or (span.frames is not None and filled < span.frames):
        raise too_short(path, seen if span.repeats is None else span.start + filled, span.start, span.frames)
    return sink.sink.sink


@contextmanager
def opened_with_pace(path: str | os.PathLike, threads: int) -> Iterator[tuple[Video, Pace]]:
    with opened_video(path, threads) as video:
        found, read_through = pace_of(path, video)
        if not read_through:
            yield video, found
    if read_through:
        with opened_video(path, threads) as video:
            yield video, found
