"""Reading exact windows of frames from videos, animations and images.

Axes: F frames, H height, W width. Frames are uint8 tensors [F,H,W,3], RGB, 0..255, in display order, as they are meant
to be seen: upright, of square pixels, whole where they are interlaced, in BT.709 or sRGB, over black. A clip is read at
one rate (`pace`): frames are numbered at that rate.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from ...errors import ClipError
from .decoding import (
    Make,
    Sink,
    Span,
    check_repeats,
    converter_of,
    decode_after_seek,
    decode_from_start,
    decoded,
    looked_at,
    opened_with_pace,
    pace_of,
    pace_of_view,
    too_short,
    undamaged,
)
from .images import animation_frames, animation_times, is_image, opened_image, read_image, upright_size
from .opening import check_file, opened_video
from .pace import Pace, pace
from .packets import Times, known_pace, remember_pace, times_by_decoding, view_by
from .pixels import Frames, Progressive, Repeated, Windows
from .showing import Converter
from .view import View

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a file holds: number of frames, frames per second (0 for an image), and size in pixels, as it is shown."""

    frames: int
    fps: float
    height: int
    width: int


def probe(path: str | os.PathLike) -> VideoInfo:
    """Counts the frames exactly and gives fps and size, decoding only where nothing else can count.

    Raises ClipError ("missing", "empty-file", "unreadable", "truncated", "no-video", "too-large", "hdr", "colours").
    """
    check_file(path)
    if is_image(path):
        with opened_image(path) as image:
            height, width = upright_size(image)
        found = _animation_pace(path)
        return VideoInfo(found.frames, float(found.rate), height, width)
    with opened_video(path) as video:
        convert = converter_of(path, video)
        first, frames, found = looked_at(path, video)
        if first is None:
            raise ClipError(path, "no-video", "holds no video frame; remove it from the manifest")
        height, width = convert.size(first)
        fps = 0.0 if frames == 1 and video.format == "gif" else float(found.rate)
    return VideoInfo(frames, fps, height, width)


def read_frames(
    path: str | os.PathLike,
    start: int = 0,
    frames: int | None = None,
    *,
    view: View | None = None,
    threads: int = 1,
) -> Tensor:
    """Decodes exactly the frames [start, start + frames) in display order -> uint8 [F,H,W,3], RGB.

    `frames=None` reads to the end. view: frames are numbered in what it takes of the file. `threads` is the decoder's
    (0: FFmpeg chooses). An image is a clip of one frame. Raises ClipError (`probe`'s, "too-short", and of a view
    "slower-than-fps" where more frames would repeat than it allows).
    """
    if start < 0 or (frames is not None and frames < 1):
        raise ValueError(f"read_frames wants start >= 0 and frames >= 1 (or None), got start={start}, frames={frames}")
    check_file(path)
    return _read(path, [start], frames, Frames, threads, view).pixels()


def read_windows(
    path: str | os.PathLike,
    starts: Sequence[int],
    frames: int,
    then: Callable[[int, Tensor], T],
    size: tuple[int, int] | None = None,
    *,
    told: tuple[int, int] | None = None,
    view: View | None = None,
    threads: int = 1,
) -> list[T]:
    """Decodes the windows [start, start + frames) of a file in one go, so that what lies before and between them is
    decoded once: of each, in the order of `starts`, what `then` makes of its place in that and its uint8 [F,H,W,3].

    size: (H, W) that the frames are fitted to (`transforms.fit`); None: their own. told: (H, W) that a table says of
    the file; ClipError ("other-size") where it has another. A window is handed to `then` as soon
    as it is whole, and not kept. Otherwise as `read_frames`, with its errors.
    """
    if not starts or min(starts) < 0 or frames < 1:
        raise ValueError(f"read_windows wants starts >= 0 and frames >= 1, got starts={starts}, frames={frames}")
    check_file(path)
    offsets = [start - min(starts) for start in starts]

    def make(convert: Converter, _: int | None) -> Windows:
        if told is not None:
            convert.expect(told)
        return Windows(convert, offsets, frames, then, size)

    return _read(path, starts, frames, make, threads, view).results


def read_chunks(path: str | os.PathLike, first: int, later: int, *, threads: int = 1) -> Iterator[Tensor]:
    """Decodes a file once, from its start: uint8 [first,H,W,3], then [later,H,W,3] each, the last as long as it is.

    One chunk at a time is in memory. Otherwise as `read_frames`, with its errors.
    """
    if min(first, later) < 1:
        raise ValueError(f"read_chunks wants chunks of at least 1 frame, got {first} and {later}")
    check_file(path)
    window, none = None, True
    for convert, frame in _all_shown(path, threads):
        window = window or Frames(convert, first)
        none = False
        if window.add(frame):
            yield window.restart(later)
    if none:
        raise too_short(path, 0, 0, None)
    if window.filled:
        yield window.pixels()


def _animation_pace(path: str | os.PathLike, view: View | None = None) -> Pace:
    """Of an image: one frame, no rate."""
    if view is not None:
        times = times_by_decoding(path, partial(_times_in_ms, path))
        return view_by(path, view, times) if len(times.shown) > 1 else Pace(Fraction(0), 1)
    found = known_pace(path)
    if found is None:
        times = animation_times(path)
        if times is None:
            return Pace(Fraction(0), 1)
        found = pace(np.array(times[:-1], np.int64), Fraction(1, 1000), times[-1] - times[-2], None)
        remember_pace(path, found)
    return found


def _times_in_ms(path: str | os.PathLike) -> Times:
    times = animation_times(path) or [0, 0]
    return Times(np.array(times[:-1], np.int64), Fraction(1, 1000), times[-1] - times[-2])


def _read(
    path: str | os.PathLike, starts: Sequence[int], frames: int | None, make: Make, threads: int, view: View | None
) -> Sink:
    """What `make` gives, with the frames from the first of `starts` to the end of the last window added.

    frames: of each window; None: all from the one of `starts` on.
    """
    if is_image(path):
        return _read_image(path, starts, frames, make, view)
    sink = None
    with opened_video(path, threads) as video:
        convert = converter_of(path, video)
        found, read_through = pace_of(path, video) if view is None else pace_of_view(path, video, view)
        span = _span(path, found, starts, frames, view)
        if span.first:
            sink = decode_after_seek(path, video, span, make, convert)
        elif not read_through:
            return decode_from_start(path, video, span, make, convert)
    if sink is None:
        with opened_video(path, threads) as video:
            sink = decode_from_start(path, video, span, make, convert)
    return sink


def _span(path: str | os.PathLike, found: Pace, starts: Sequence[int], frames: int | None, view: View | None) -> Span:
    start = min(starts)
    if view is not None and found.slots is not None:
        check_repeats(path, found, view, starts, found.frames - start if frames is None else frames)
    return Span.of(path, found, start, None if frames is None else max(starts) + frames - start, view)


def _read_image(
    path: str | os.PathLike, starts: Sequence[int], frames: int | None, make: Make, view: View | None
) -> Sink:
    found = _animation_pace(path, view)
    have, start = found.frames, min(starts)
    if view is None or found.slots is None:
        wanted = 1 if frames is None else max(starts) + frames - start
        if start + wanted > have:
            raise too_short(path, have, start, None if frames is None else wanted)
    if frames is None:
        starts, frames = [start], have - start
    span = _span(path, found, starts, frames, view)
    sink = make(Converter(path), span.frames)
    repeated = Repeated(sink, span.repeats)
    for n, frame in enumerate(animation_frames(path) if have > 1 else [read_image(path)]):
        if n >= span.first and repeated.add(frame):
            break
    return sink


class _Held:
    """Keeps frames until they are taken out."""

    def __init__(self) -> None:
        self._frames: list[Any] = []

    def add(self, frame: Any) -> bool:
        self._frames.append(frame)
        return False

    def taken(self) -> list[Any]:
        frames, self._frames = self._frames, []
        return frames


def _all_shown(path: str | os.PathLike, threads: int) -> Iterator[tuple[Converter, Any]]:
    """All frames of a file as they are shown, still to be converted."""
    held = _Held()
    if is_image(path):
        found = _animation_pace(path)
        convert, repeats = Converter(path), None if found.slots is None else found.coded(0, found.frames)[1]
        sink = Repeated(held, repeats)
        for frame in animation_frames(path) if found.frames > 1 else [read_image(path)]:
            sink.add(frame)
            yield from ((convert, shown) for shown in held.taken())
        return
    with opened_with_pace(path, threads) as (video, found):
        convert, repeats = converter_of(path, video), None if found.slots is None else found.coded(0, found.frames)[1]
        sink = Progressive(Repeated(held, repeats))
        for frame in undamaged(path, decoded(path, video)):
            sink.add(frame)
            yield from ((convert, shown) for shown in held.taken())
        sink.end()
        yield from ((convert, shown) for shown in held.taken())
