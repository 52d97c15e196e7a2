"""Writing small videos, gifs and pictures.

Axes: F frames, H height, W width. Frames are uint8 [F,H,W,3], RGB, 0..255, in display order.
"""

import errno
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from PIL import Image
from torch import Tensor

from ...errors import UserError
from ...files import follow_umask, written_whole
from .decoding import first_frame_s
from .kinds import VIDEO_ENDINGS
from .opening import opened_container, opened_video
from .showing import ACCURATE

_BT709 = 1  # the same number for the matrix, the primaries and the transfer curve
_AUDIO = {  # what players read in each
    ".mp4": frozenset({"aac", "mp3", "ac3", "eac3", "alac", "flac", "opus"}),
    ".webm": frozenset({"opus", "vorbis"}),
}
_CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9"}
WAITING = 64  # frames, and more, that an encoder keeps to itself until it has seen the next ones
_PREROLL = 2  # packets before the first frame that a decoder needs for the sound of the first


def write_video(path: str | os.PathLike, frames: Tensor, fps: float, *, crf: int = 12) -> None:
    """Writes uint8 [F,H,W,3] RGB by the ending of `path`; its folder is made if need be.

    .mp4: H.264, BT.709, `crf` 0 (lossless luma) .. 51; 4:2:0, or 4:4:4 where a side is odd (4:2:0 needs even sides).
    .webm: VP9, otherwise as .mp4.
    .gif: one palette of 256 colours for the clip, looping, at most 50 fps (`crf` is not used).
    .png: one frame as it is; several as a contact sheet, row by row (`fps` and `crf` are not used).
    The file appears under its name only when whole. Raises UserError for other endings or frames,
    and for an fps that the format cannot hold.
    """
    path = Path(path)
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
        raise UserError(
            f"write_video wants uint8 frames [F,H,W,3], got {frames.dtype} {list(frames.shape)}; "
            "latentvid.data.transforms.to_uint8 makes them from [-1,1]"
        )
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UserError(f"cannot write {path.name}: give the output the ending .mp4, .webm, .gif or .png")
    if not (math.isfinite(fps) and fps > 0):
        raise UserError(f"fps must be above 0, got {fps}")
    with written_whole(path) as beside:
        writer(beside, frames.cpu().numpy(), fps, crf)


@contextmanager
def clip_writer(
    path: str | os.PathLike,
    height: int,
    width: int,
    fps: float,
    *,
    crf: int = 12,
    audio: str | os.PathLike | None = None,
    full_range: bool = False,
    partial: Callable[[], str | os.PathLike | None] = lambda: None,
) -> Iterator[Callable[[Tensor], None]]:
    """Opens an mp4 or webm (as `write_video` writes it) and gives a function that appends uint8 frames [F,H,W,3] to it.

    audio: a file whose main audio stream is copied as it is, in step with the frames and as far as they last; it must
    be one that `copies_audio`. full_range: luma of 0..255 in place of 16..235, as `has_full_range`.
    The file appears under its name when the block ends without an error. Where it ends with
    one, the frames so far become a file that `partial` names (None: they are not kept). So that there is room for that
    on a disk that fills up, no frame is taken once it is all but full (OSError).
    """
    ending = Path(path).suffix.lower()
    if ending not in _CODECS:
        raise UserError(f"cannot write {path} while it is made: give the output the ending .mp4 or .webm")
    with written_whole(path) as beside:
        failed = kept = None
        with _opened(beside, ending, height, width, fps, crf, audio, full_range) as write:
            taken, broken = 0, False

            def append(frames: Tensor) -> None:
                nonlocal taken, broken
                for pixels in frames.cpu().numpy():
                    _check_room(beside, path, taken, height * width)
                    try:
                        write(pixels[None])
                    except Exception:
                        broken = True
                        raise
                    taken += 1

            try:
                yield append
            except BaseException as error:
                if broken or (kept := partial()) is None:
                    raise
                failed = error  # and what is written so far becomes a whole file
        if failed is not None:
            follow_umask(beside)
            os.replace(beside, kept)
            raise failed


def _check_room(file: Path, name: str | os.PathLike, frames: int, pixels: int) -> None:
    """Raises OSError unless what ends a video, and the frames that still wait in the encoder, would have room."""
    written = file.stat().st_size if file.exists() else 0  # the encoder keeps the first frames to itself
    each = max(pixels / 4, written / max(1, frames))  # bytes of a frame
    if shutil.disk_usage(file.parent).free < 2**20 + 64 * frames + WAITING * each:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(name))


def copies_audio(path: str | os.PathLike, output: str | os.PathLike = ".mp4") -> tuple[bool, str | None]:
    """Whether a file has an audio stream that `output`, by its ending, can hold as it is, and that stream's codec."""
    if os.path.splitext(os.fspath(path))[1].lower() not in VIDEO_ENDINGS:
        return False, None
    with opened_container(path) as container:
        audio = container.streams.best("audio")
        codec = None if audio is None or audio.codec_context is None else audio.codec_context.name
    name = os.fspath(output).lower()
    return codec in _AUDIO.get(name[name.rfind(".") :], ()), codec


def has_full_range(path: str | os.PathLike) -> bool:
    """Whether a video's luma is of 0..255, as many phones and screen recorders write it; False of a picture."""
    if os.path.splitext(os.fspath(path))[1].lower() not in VIDEO_ENDINGS:
        return False
    with opened_video(path) as video:
        context = video.stream.codec_context
        return context.color_range == ColorRange.JPEG or (context.pix_fmt or "").startswith("yuvj")


def bits_of(path: str | os.PathLike) -> int:
    """Of a channel of a video, 8 or more; 8 of a picture."""
    if os.path.splitext(os.fspath(path))[1].lower() not in VIDEO_ENDINGS:
        return 8
    with opened_video(path) as video:
        name = video.stream.codec_context.pix_fmt
    return max(8, *(part.bits for part in av.VideoFormat(name).components)) if name else 8


def in_memory(frames: Tensor, fps: float, crf: int) -> io.BytesIO:
    """What `write_video` makes of uint8 [F,H,W,3] as an .mp4, at its start."""
    file = io.BytesIO()
    with _opened(file, ".mp4", *frames.shape[1:3], fps, crf) as write:
        write(frames.cpu().numpy())
    file.seek(0)
    return file


@contextmanager
def _opened(
    path: Path | io.BytesIO,
    ending: str,
    height: int,
    width: int,
    fps: float,
    crf: int,
    audio: str | os.PathLike | None = None,
    full_range: bool = False,
) -> Iterator[Callable[[np.ndarray], None]]:
    pixel_format = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    rate, in_memory = Fraction(fps).limit_denominator(1001), isinstance(path, io.BytesIO)
    # the conversion below averages 2x2 pixels, so the chroma sits in their centre; untagged it is read as "left", which
    # costs 4 dB on a 32x32 clip
    options = {"threads": "1", "chroma_sample_location": "center"}
    if ending == ".webm":
        quality = {"lossless": "1"} if crf == 0 else {"crf": str(crf)}
        options |= {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "0", **quality}
    else:
        options |= {"crf": str(crf), "mbtree": "0"}
    with ExitStack() as stack:
        source = None if audio is None else stack.enter_context(opened_container(audio))
        container = av.open(
            path if in_memory else os.fspath(path),
            "w",
            format=ending[1:],
            options={"movflags": "+faststart"} if ending == ".mp4" and not in_memory else {},
        )
        stack.enter_context(container)
        stream = container.add_stream(_CODECS[ending], rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = levels = ColorRange.JPEG if full_range else ColorRange.MPEG
        sound = None if source is None else _Sound(audio, source, container)
        reformatter, frames = VideoReformatter(), count()

        def write(pixels: np.ndarray) -> None:
            for rgb, index in zip(pixels, frames, strict=False):
                frame = reformatter.reformat(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24"),
                    format=pixel_format,
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=levels,
                    interpolation=ACCURATE | Interpolation.FULL_CHR_H_INP,
                    threads=1,
                )
                frame.pts = index
                container.mux(stream.encode(frame))
                if sound is not None:
                    sound.copy_until((index + 1) / rate)

        yield write
        container.mux(stream.encode(None))


class _Sound:
    """Copies an audio stream's packets in step with the frames that are written, so that none wait in memory."""

    def __init__(self, path: str | os.PathLike, source: Any, output: Any) -> None:
        audio = source.streams.best("audio")
        self._output, self._stream = output, output.add_stream_from_template(audio)
        self._base = audio.time_base
        self._shift = round(first_frame_s(path) / self._base)  # the output's first frame is at 0
        self._packets = (packet for packet in source.demux(audio) if packet.size and packet.pts is not None)
        self._next = next(self._packets, None)

    def copy_until(self, seconds: Fraction) -> None:
        while self._next is not None and (self._next.pts - self._shift) * self._base < seconds:
            packet, self._next = self._next, next(self._packets, None)
            packet.pts = packet.dts = packet.pts - self._shift
            # what sounds before the first frame is left out, but for what starts the decoder (a player skips that)
            if packet.pts + _PREROLL * (packet.duration or 0) > 0:
                packet.stream = self._stream
                self._output.mux(packet)


def _write_streamed(path: Path, frames: np.ndarray, fps: float, crf: int, ending: str) -> None:
    with _opened(path, ending, *frames.shape[1:3], fps, crf) as write:
        write(frames)


def _write_gif(path: Path, frames: np.ndarray, fps: float, crf: int) -> None:
    if fps > 50:
        raise UserError(f"a gif plays at most 50 frames per second, got {fps:g}; lower fps or write an .mp4")
    images = [Image.fromarray(frame) for frame in frames]
    sample = frames[np.linspace(0, len(frames) - 1, min(len(frames), 16)).round().astype(int)]
    palette = Image.fromarray(np.concatenate(sample)).quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for image in images]
    ends = [round(100 * (index + 1) / fps) for index in range(len(images))]  # gif counts in hundredths of a second
    durations = [10 * (end - begin) for begin, end in zip([0, *ends], ends, strict=False)]
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False
    )


def _write_png(path: Path, frames: np.ndarray, fps: float, crf: int) -> None:
    total, height, width, _ = frames.shape
    columns = min(total, math.ceil(math.sqrt(total * height / width)))  # a sheet about as wide as it is high
    rows = math.ceil(total / columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = frame
    Image.fromarray(sheet).save(path, format="PNG")


_WRITERS = {
    ".mp4": partial(_write_streamed, ending=".mp4"),
    ".webm": partial(_write_streamed, ending=".webm"),
    ".gif": _write_gif,
    ".png": _write_png,
}
