"""Opening the video of a file: its main stream and a decoder for it, or one ClipError that says what is wrong."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
from av.stream import Disposition

from ...errors import ClipError
from ...places import place
from ..access.files import PieceFile, by_pieces, is_plain, status
from ..storage import fault_of
from .containers import dolby_profile, is_cut, pictures_of
from .kinds import MOST_PIXELS, VIDEO_FORMATS

_STALLS_S = 15.0  # a single read or opening that takes longer hangs
# a file may hold no other file's name: a playlist or SDP that is called .mp4 would open files and connections
_OPTIONS = {"format_whitelist": ",".join(VIDEO_FORMATS), "protocol_whitelist": "file"}
_NOT_THE_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
_DOLBY_TAGS = frozenset({"dvh1", "dvhe", "dva1", "dvav", "dav1"})
_READ = 1 << 16  # bytes that FFmpeg asks for at once
_TIMES_BY_INDEX = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg", "prores"})
_UNSPECIFIED = 2  # of a transfer curve
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave the alpha out


@dataclass(frozen=True, slots=True)
class Video:
    """An opened container, its main video stream, and what decodes that."""

    container: Any
    stream: Any
    decoder: Any

    @property
    def format(self) -> str:
        return self.container.format.name

    @property
    def codec(self) -> str:
        return self.stream.codec_context.name

    def packets(self) -> Iterator[Any]:
        """The stream's packets in decoding order; the last, empty one makes `decode` give what it holds back."""
        return self.container.demux(self.stream)

    def decode(self, packet: Any) -> list[Any]:
        return self.decoder.decode(packet if packet.size else None)

    def seek(self, time: int) -> None:
        """To the key frame at or before `time`, in the stream's time base."""
        self.container.seek(time, stream=self.stream)
        self.decoder.flush_buffers()


def check_file(path: str | os.PathLike) -> None:
    """Raises ClipError ("missing", "empty-file", "unreadable") for what is not a file with something in it."""
    try:
        found = status(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        why = getattr(error, "strerror", None) or error
        raise fault_of(path, error, ClipError(path, "missing", f"cannot be found ({why}); correct the path")) from error
    if not stat.S_ISREG(found.st_mode):  # a pipe or device would be waited for
        raise ClipError(path, "unreadable", "is no file; give the path of a video or image")
    if found.st_size == 0:
        raise ClipError(path, "empty-file", "is empty (0 bytes); copy or export it again")


def truncated(path: str | os.PathLike) -> ClipError:
    """The fault of a file that ends too soon."""
    return ClipError(path, "truncated", "is cut short; copy or export it again")


def check_size(path: str | os.PathLike, height: int, width: int) -> None:
    """Raises ClipError ("too-large") before memory is taken for a picture of a size that no camera makes."""
    if height * width > MOST_PIXELS:
        message = f"is {width} x {height} pixels, more than {MOST_PIXELS // 10**6} million; scale it down"
        raise ClipError(path, "too-large", message)


def main_stream(streams: Any) -> Any | None:
    """The video that a player shows: no cover picture; marked as default before others, then by size and bit rate."""

    def rank(stream: Any) -> tuple:
        context = stream.codec_context
        area = context.width * context.height if context else 0
        return bool(stream.disposition & Disposition.default), area, context.bit_rate or 0 if context else 0

    return max((s for s in streams if not s.disposition & _NOT_THE_VIDEO), key=rank, default=None)


@contextmanager
def opened_container(path: str | os.PathLike, holes: Sequence[tuple[int, int]] = ()) -> Iterator[Any]:
    """The container of a file, whatever streams it has; FFmpeg's errors become ClipErrors; always closes.

    holes: bytes [begin, end) of a file that is read by pieces, which are taken as zeros and not fetched.
    """
    try:
        if is_cut(path):
            raise truncated(path)
        if is_plain(path):
            url = "file:" + place(path)  # a name like "concat:a" is a file's, too
            with av.open(url, metadata_errors="ignore", options=_OPTIONS, timeout=_STALLS_S) as container:
                yield container
            return
        with _of_pieces(by_pieces(path, holes)) as container:
            yield container
    except av.error.ExitError as error:
        raise ClipError(path, "hangs", f"did not come within {_STALLS_S:g} s; copy or export it again") from error
    except (av.FFmpegError, OSError) as error:
        message = f"cannot be decoded ({error.strerror}); convert it to H.264 mp4 or remove it from the manifest"
        raise fault_of(path, error, ClipError(path, "unreadable", message)) from error


@contextmanager
def _of_pieces(file: PieceFile) -> Iterator[Any]:
    """FFmpeg takes a read that fails for the end of the file, and may go on: what the storage raised comes first."""
    try:
        with file, av.open(file, metadata_errors="ignore", options=_OPTIONS, buffer_size=_READ) as container:
            yield container
    finally:
        if file.fault is not None:
            raise file.fault


@contextmanager
def opened_for_times(path: str | os.PathLike, video: Video) -> Iterator[tuple[Video, frozenset[int] | None]]:
    """(the video whose packets are to tell times alone, decoding times of its key frames).

    Of a file that is read by pieces, and has an index that lists all frames, a second one, of which the pictures are
    not fetched: what a packet is, only the index says then. Else this one, and None.
    """
    indexed = "mov" in video.format and 0 < video.stream.frames == len(video.stream.index_entries)
    holes = pictures_of(path) if indexed and video.codec in _TIMES_BY_INDEX and not is_plain(path) else ()
    if not holes:
        yield video, None
        return
    keys = frozenset(entry.timestamp for entry in video.stream.index_entries if entry.is_keyframe)
    with opened_container(path, holes) as container:
        stream = container.streams[video.stream.index]
        yield Video(container, stream, stream.codec_context), keys


@contextmanager
def opened_video(path: str | os.PathLike, threads: int = 1) -> Iterator[Video]:
    """The main video stream of a file (`main_stream`) with `threads` to decode it (0: FFmpeg chooses)."""
    with opened_container(path) as container:
        stream = main_stream(container.streams.video)
        if stream is None:
            raise ClipError(path, "no-video", "has no video stream; remove it from the manifest")
        context = stream.codec_context
        if context is None:
            raise ClipError(path, "unreadable", "has no decoder in this FFmpeg; convert it to H.264 mp4")
        check_size(path, context.height, context.width)
        if context.codec_tag in _DOLBY_TAGS and (context.color_trc == _UNSPECIFIED or dolby_profile(path) == 5):
            raise ClipError(path, "hdr", "is Dolby Vision alone (profile 5); export it as SDR, HLG or HDR10")
        if context.name in _WITH_ALPHA and stream.metadata.get("alpha_mode") == "1":
            context = _context_with_alpha(context)
        context.options = {**context.options, "max_pixels": str(MOST_PIXELS)}  # a size may change on the way
        context.thread_count = threads
        if threads != 1:
            context.thread_type = "AUTO"
        yield Video(container, stream, context)


def _context_with_alpha(context: Any) -> Any:
    other = av.CodecContext.create(_WITH_ALPHA[context.name], "r")
    other.extradata, other.width, other.height = context.extradata, context.width, context.height
    return other
