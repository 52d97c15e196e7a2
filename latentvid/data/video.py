"""Reading exact windows of frames from videos and images.

Axes: F frames, H height, W width. Frames are uint8 tensors [F,H,W,3], RGB, 0..255, in display order.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import av
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from latentvid.data.containers import is_cut
from latentvid.data.kinds import IMAGE_ENDINGS
from latentvid.data.packets import Packets, frame_times, truncated
from latentvid.data.pixels import Frames, Windows, quarter_turns
from latentvid.data.storage import fault_of
from latentvid.data.transforms import fit
from latentvid.errors import ClipError

T = TypeVar("T")

# packets of these codecs may be invisible or hold two frames, so that only decoding counts frames
_PACKETS_ARE_NOT_FRAMES = frozenset({"vp8", "mpeg4", "msmpeg4v3"})
_MARKS_UNREFERENCED = frozenset({"h264"})  # certain for every later frame (HEVC's marks are for its own layer only)
_STORES_DISPLAY_TIMES = ("mov", "matroska", "mpegts", "flv")  # AVI and raw streams do not: their times are guesses


Sink = TypeVar("Sink", Frames, Windows)  # what takes decoded frames


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a file holds: number of frames, frames per second (0 for an image), and upright size in pixels."""

    frames: int
    fps: float
    height: int
    width: int


def probe(path: str | os.PathLike) -> VideoInfo:
    """Counts the frames exactly and gives fps and upright size, decoding only where nothing else can count.

    Raises ClipError ("missing", "empty-file", "unreadable", "truncated", "no-video").
    """
    _check_file(path)
    if _is_image(path):
        with _opened_image(path) as image:
            width, height = image.size
            if image.getexif().get(0x0112, 1) >= 5:  # EXIF orientations 5..8 lie on their side
                width, height = height, width
        return VideoInfo(frames=1, fps=0.0, height=height, width=width)
    with _opened_video(path) as (container, stream):
        frames, first = _count_frames(path, container, stream)
        if first is None:
            raise ClipError(path, "no-video", "holds no video frame; remove it from the manifest")
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        height, width = stream.height, stream.width
        if quarter_turns(first) % 2:
            height, width = width, height
    return VideoInfo(frames=frames, fps=fps, height=height, width=width)


def read_frames(path: str | os.PathLike, start: int = 0, frames: int | None = None, *, threads: int = 1) -> Tensor:
    """Decodes exactly the frames [start, start + frames) in display order -> uint8 [F,H,W,3], RGB.

    `frames=None` reads to the end. `threads` is the decoder's (0: FFmpeg chooses). Rotation flags are applied,
    pixels are taken as square, alpha of images lies on black. An image is a clip of one frame.
    Raises ClipError ("missing", "empty-file", "unreadable", "truncated", "too-short", "no-video").
    """
    if start < 0 or (frames is not None and frames < 1):
        raise ValueError(f"read_frames wants start >= 0 and frames >= 1 (or None), got start={start}, frames={frames}")
    _check_file(path)
    if _is_image(path):
        return _image_as_clip(path, start, frames)
    return _read(path, start, frames, partial(Frames, path), threads).pixels()


def read_windows(
    path: str | os.PathLike,
    starts: Sequence[int],
    frames: int,
    then: Callable[[int, Tensor], T],
    size: tuple[int, int] | None = None,
    *,
    threads: int = 1,
) -> list[T]:
    """Decodes the windows [start, start + frames) of a file in one go, so that what lies before and between them is
    decoded once: of each, in the order of `starts`, what `then` makes of its place in that and its uint8 [F,H,W,3].

    size: (H, W) that the frames are fitted to (`transforms.fit`); None: their own. A window is handed to `then` as soon
    as it is whole, and not kept. Otherwise as `read_frames`, with its errors.
    """
    if not starts or min(starts) < 0 or frames < 1:
        raise ValueError(f"read_windows wants starts >= 0 and frames >= 1, got starts={starts}, frames={frames}")
    _check_file(path)
    if _is_image(path):
        image = [_image_as_clip(path, start, frames) for start in starts]
        return [then(n, pixels if size is None else fit(pixels, *size)) for n, pixels in enumerate(image)]
    first = min(starts)
    offsets = [start - first for start in starts]
    read = _read(path, first, max(offsets) + frames, lambda _: Windows(path, offsets, frames, then, size), threads)
    return read.results


def read_chunks(path: str | os.PathLike, first: int, later: int, *, threads: int = 1) -> Iterator[Tensor]:
    """Decodes a file once, from its start: uint8 [first,H,W,3], then [later,H,W,3] each, the last as long as it is.

    One chunk at a time is in memory. Otherwise as `read_frames`, with its errors.
    """
    if min(first, later) < 1:
        raise ValueError(f"read_chunks wants chunks of at least 1 frame, got {first} and {later}")
    _check_file(path)
    if _is_image(path):
        yield _image_as_clip(path)
        return
    window, seen = Frames(path, first), 0
    with _opened_video(path, threads) as (container, stream):
        for frame in _sound(path, _decoded(path, container, stream)):
            seen += 1
            if window.add(frame):
                yield window.restart(later)
    if window.filled:
        yield window.pixels()
    if not seen:
        raise _too_short(path, 0, 0, None)


# ---------------------------------------------------------------------------------------------------------- opening


def _is_image(path: str | os.PathLike) -> bool:
    return os.path.splitext(os.fspath(path))[1].lower() in IMAGE_ENDINGS


def _check_file(path: str | os.PathLike) -> None:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        missing = ClipError(path, "missing", f"cannot be found ({error.strerror}); correct the path")
        raise fault_of(path, error, missing) from error
    if size == 0:
        raise ClipError(path, "empty-file", "is empty (0 bytes); copy or export it again")


def _too_short(path: str | os.PathLike, have: int, start: int, frames: int | None) -> ClipError:
    asked = f"frames {start} to {start + frames - 1}" if frames else f"frames from {start} on"
    fix = "ask for fewer frames or correct `frames` in the manifest"
    return ClipError(path, "too-short", f"has {have} frames, but {asked} were asked for; {fix}")


@contextmanager
def _opened_image(path: str | os.PathLike) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        if isinstance(error, ClipError):
            raise
        if "truncated" in str(error).lower():
            raise truncated(path) from error
        content = ClipError(path, "unreadable", f"cannot be read as an image ({error}); save it again as PNG")
        raise fault_of(path, error, content) from error


def _image_as_clip(path: str | os.PathLike, start: int = 0, frames: int | None = None) -> Tensor:
    """-> uint8 [1,H,W,3]"""
    pixels = _read_image(path)[None]
    if start > 0 or frames not in (None, 1):
        raise _too_short(path, 1, start, frames)
    return torch.from_numpy(pixels)


def _read_image(path: str | os.PathLike) -> np.ndarray:
    """-> uint8 [H,W,3]"""
    with _opened_image(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # convert("RGB") would clip 16-bit grey instead of scaling it
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        elif upright.mode in ("I", "F"):
            raise ClipError(path, "unreadable", f"has pixels of mode {upright.mode}; save it with 8 or 16 bits")
        if "A" in upright.getbands() or "transparency" in upright.info:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, (0, 0, 0, 255)), upright)
        return np.array(upright.convert("RGB"))


@contextmanager
def _opened_video(path: str | os.PathLike, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """The first video stream; FFmpeg's errors become ClipErrors; always closes."""
    try:
        if is_cut(path):
            raise truncated(path)
        with av.open(os.fspath(path), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise ClipError(path, "no-video", "has no video stream; remove it from the manifest")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ClipError(path, "unreadable", "has no decoder in this FFmpeg; convert it to H.264 mp4")
            stream.codec_context.thread_count = threads
            if threads != 1:
                stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        message = f"cannot be decoded ({error.strerror}); convert it to H.264 mp4 or remove it from the manifest"
        raise fault_of(path, error, ClipError(path, "unreadable", message)) from error


# --------------------------------------------------------------------------------------------------------- decoding


def _count_frames(path: str | os.PathLike, container: Any, stream: Any) -> tuple[int, Any]:
    """(number of frames, the first decoded frame or None)"""
    index = stream.index_entries
    listed = "mov" in container.format.name and 0 < stream.frames == len(index) and not any(e.is_discard for e in index)
    decode_all = stream.codec_context.name in _PACKETS_ARE_NOT_FRAMES
    count, first, packets = 0, None, Packets(path)
    for packet in container.demux(stream):
        packets.add(packet)
        decoded = packet.decode() if first is None or decode_all else []
        count += len(decoded)
        if first is None and decoded:
            first = decoded[0]
            if listed and not packets.leading and not decode_all:
                return stream.frames, first
    return (count if decode_all else len(packets.times)), first


def _decoded(path: str | os.PathLike, container: Any, stream: Any, lean_before: int | None = None) -> Iterator[Any]:
    """All frames; of those shown before `lean_before`, only the ones that others refer to need be decoded."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise truncated(path)
        if lean_before is not None:
            unseen = packet.pts is not None and packet.pts < lean_before
            stream.codec_context.skip_frame = "NONREF" if unseen else "DEFAULT"
        yield from packet.decode()


def _sound(path: str | os.PathLike, frames: Iterator[Any]) -> Iterator[Any]:
    for frame in frames:
        if frame.is_corrupt:
            raise ClipError(path, "unreadable", "has damaged frames; export it again")
        yield frame


def _read(
    path: str | os.PathLike, start: int, frames: int | None, make: Callable[[int | None], Sink], threads: int
) -> Sink:
    """What `make(frames)` gives, with the frames [start, start + frames) added; None: all from `start` on."""
    sink = None
    if start:
        with _opened_video(path, threads) as (container, stream):
            sink = _decode_after_seek(path, container, stream, start, frames, make)
    if sink is None:
        with _opened_video(path, threads) as (container, stream):
            sink = _decode_from_start(path, container, stream, start, frames, make(frames))
    return sink


def _decode_after_seek(
    path: str | os.PathLike,
    container: Any,
    stream: Any,
    start: int,
    frames: int | None,
    make: Callable[[int | None], Sink],
) -> Sink | None:
    """Decodes from the key frame before the window; None where times cannot vouch that the window is exact."""
    if stream.codec_context.name in _PACKETS_ARE_NOT_FRAMES or not container.format.name.startswith(
        _STORES_DISPLAY_TIMES
    ):
        return None
    times = frame_times(path, container, stream)
    if times is None:
        return None
    count = len(times.shown) - start if frames is None else frames
    if count < 1 or start + count > len(times.shown):
        return None  # decoding from the start tells what is missing
    wanted = times.shown[start : start + count].tolist()
    keys = times.keys[: np.searchsorted(times.keys, wanted[0], "right")].tolist()
    tries = [(key, False) for key in keys[:-3:-1]]  # an open GOP may need the one before
    if stream.codec_context.name in _MARKS_UNREFERENCED:
        tries = [(keys[-1], True), *tries] if keys else []
    for key, lean in tries:
        container.seek(key, stream=stream)
        sink = make(count)
        for frame in _decoded(path, container, stream, wanted[0] if lean else None):
            if frame.pts is None or frame.pts < wanted[0]:
                continue
            if frame.pts != wanted[sink.filled] or frame.is_corrupt:
                break  # a frame is missing: try from further back
            if sink.add(frame):
                return sink
    return None


def _decode_from_start(
    path: str | os.PathLike, container: Any, stream: Any, start: int, frames: int | None, sink: Sink
) -> Sink:
    seen = 0
    for frame in _sound(path, _decoded(path, container, stream)):
        seen += 1
        if seen > start and sink.add(frame):
            break
    if sink.filled == 0 or (frames is not None and sink.filled < frames):
        raise _too_short(path, seen, start, frames)
    return sink
