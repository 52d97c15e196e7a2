"""Reading exact windows of frames from videos and images.

Axes: F frames, H height, W width. Frames are uint8 tensors [F,H,W,3], RGB, 0..255, in display order.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from PIL import Image, ImageOps
from torch import Tensor

from latentvid.data.containers import is_cut
from latentvid.data.packets import Packets, frame_times, truncated
from latentvid.errors import ClipError

IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
VIDEO_ENDINGS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".ts", ".mpg", ".mpeg"})

# swscale's quick paths are a grey level off on average; these cost about 0.4 ms more per 256x256 frame
ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# packets of these codecs may be invisible or hold two frames, so that only decoding counts frames
_PACKETS_ARE_NOT_FRAMES = frozenset({"vp8", "mpeg4", "msmpeg4v3"})
_MARKS_UNREFERENCED = frozenset({"h264"})  # certain for every later frame (HEVC's marks are for its own layer only)
_UNTAGGED = 2  # AVCOL_SPC_UNSPECIFIED
_STORES_DISPLAY_TIMES = ("mov", "matroska", "mpegts", "flv")  # AVI and raw streams do not: their times are guesses


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
        if _quarter_turns(first) % 2:
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
        pixels = _read_image(path)[None]
        if start > 0 or frames not in (None, 1):
            raise _too_short(path, 1, start, frames)
        return torch.from_numpy(pixels)
    window = None
    if start:
        with _opened_video(path, threads) as (container, stream):
            window = _decode_after_seek(path, container, stream, start, frames)
    if window is None:
        with _opened_video(path, threads) as (container, stream):
            window = _decode_from_start(path, container, stream, start, frames)
    return torch.from_numpy(window)


def read_chunks(path: str | os.PathLike, first: int, later: int, *, threads: int = 1) -> Iterator[Tensor]:
    """Decodes a file once, from its start: uint8 [first,H,W,3], then [later,H,W,3] each, the last as long as it is.

    One chunk at a time is in memory. Otherwise as `read_frames`, with its errors.
    """
    if min(first, later) < 1:
        raise ValueError(f"read_chunks wants chunks of at least 1 frame, got {first} and {later}")
    _check_file(path)
    if _is_image(path):
        yield torch.from_numpy(_read_image(path)[None])
        return
    window, seen = _Window(path, first), 0
    with _opened_video(path, threads) as (container, stream):
        for frame in _sound(path, _decoded(path, container, stream)):
            seen += 1
            if window.add(frame):
                yield torch.from_numpy(window.restart(later))
    if window.filled:
        yield torch.from_numpy(window.pixels())
    if not seen:
        raise _too_short(path, 0, 0, None)


# ---------------------------------------------------------------------------------------------------------- opening


def _is_image(path: str | os.PathLike) -> bool:
    return os.path.splitext(os.fspath(path))[1].lower() in IMAGE_ENDINGS


def _check_file(path: str | os.PathLike) -> None:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise ClipError(path, "missing", f"cannot be found ({error.strerror}); correct the path") from error
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
        raise ClipError(path, "unreadable", f"cannot be read as an image ({error}); save it again as PNG") from error


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
        raise ClipError(path, "unreadable", message) from error


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


def _decode_after_seek(
    path: str | os.PathLike, container: Any, stream: Any, start: int, frames: int | None
) -> np.ndarray | None:
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
        window = _Window(path, count)
        for frame in _decoded(path, container, stream, wanted[0] if lean else None):
            if frame.pts is None or frame.pts < wanted[0]:
                continue
            if frame.pts != wanted[window.filled] or frame.is_corrupt:
                break  # a frame is missing: try from further back
            if window.add(frame):
                return window.pixels()
    return None


def _decode_from_start(
    path: str | os.PathLike, container: Any, stream: Any, start: int, frames: int | None
) -> np.ndarray:
    window, seen = _Window(path, frames), 0
    for frame in _sound(path, _decoded(path, container, stream)):
        seen += 1
        if seen > start and window.add(frame):
            break
    if window.filled == 0 or (frames is not None and window.filled < frames):
        raise _too_short(path, seen, start, frames)
    return window.pixels()


def _quarter_turns(frame: Any) -> int:
    """Counter-clockwise quarter turns that make the frame upright."""
    return round(frame.rotation / 90) % 4


def _rows(frame: Any) -> np.ndarray:
    """uint8 [H,W,3] of an rgb24 frame, in the frame's own memory."""
    plane = frame.planes[0]  # its rows may be longer than the picture is wide
    return (
        np.frombuffer(plane, np.uint8)
        .reshape(-1, plane.line_size)[: frame.height, : 3 * frame.width]
        .reshape(frame.height, frame.width, 3)
    )


class _Window:
    """RGB frames of one clip; a known length is filled in place, so that nothing is held twice."""

    def __init__(self, path: str | os.PathLike, length: int | None):
        self.path = path
        self.length = length
        self.filled = 0
        self._array: np.ndarray | None = None
        self._list: list[np.ndarray] = []
        self._shape: tuple[int, ...] | None = None
        self._reformatter = VideoReformatter()

    def add(self, frame: Any) -> bool:
        """Converts and keeps a decoded frame; True when the window is full."""
        if frame.colorspace == _UNTAGGED:  # what players assume of an untagged file
            matrix = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
        else:
            matrix = None
        rgb = _rows(
            self._reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, interpolation=ACCURATE, threads=1)
        )
        turns = _quarter_turns(frame)
        if turns:
            rgb = np.rot90(rgb, turns)
        if rgb.shape != (self._shape or rgb.shape):
            raise ClipError(self.path, "unreadable", "changes its size half-way; cut it there or export it again")
        self._shape = rgb.shape
        if self.length is None:
            self._list.append(rgb.copy())
        else:
            if self._array is None:
                self._array = np.empty((self.length, *rgb.shape), np.uint8)
            self._array[self.filled] = rgb
        self.filled += 1
        return self.filled == self.length

    def pixels(self) -> np.ndarray:
        """-> uint8 [F,H,W,3]"""
        return np.stack(self._list) if self._array is None else self._array[: self.filled]

    def restart(self, length: int) -> np.ndarray:
        """The pixels so far; `length` more, of the same size, are kept from here on."""
        pixels = self.pixels()
        self.length, self.filled, self._array = length, 0, None
        return pixels
