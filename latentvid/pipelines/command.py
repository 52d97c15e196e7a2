"""What the inference scripts share once their options are read (arguments.py): reading what is given, writing results.

Axes: F frames, H height, W width in pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .. import precision
from ..data.transforms import fit, legal_size
from ..data.video.kinds import IMAGE_ENDINGS
from ..data.video.reading import VideoInfo, probe, read_chunks, read_frames
from ..data.video.writing import clip_writer, copies_audio, write_video
from ..diffusion.guidance import Guidance
from ..errors import UserError, message_of
from ..files import check_target, part_of
from .defaults import ENDINGS, STREAMED
from .latent_video import LatentVideoPipeline
from .limit import check_cost, knows_rates, trained_area, trained_frames, trained_rates
from .sampling import Sampling

CHUNK = 64  # frames that are read at a time
MOST_GIF = 50
_GUIDANCE = {
    "guidance": "scale",
    "guidance_rescale": "rescale",
    "guidance_interval": "interval",
    "zero_init": "zero_init",
}


def check_output(path: Path, fps: float | None = None, count: int = 1) -> None:
    """Raises UserError for what cannot be written (of so many clips): before the work, not after it."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {path}: the name must end in {', '.join(ENDINGS)}")
    if path.suffix.lower() == ".gif" and (fps or 0) > MOST_GIF:
        raise UserError(f"--fps {fps:g}: a gif plays at most {MOST_GIF} frames a second; lower it or write an .mp4")
    check_fps(fps)
    for i in {0, count - 1}:
        check_target(numbered(path, i, count))


def check_fps(fps: float | None) -> None:
    """Raises UserError unless there is none, or one above 0."""
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UserError(f"--fps {fps:g}: fps must be above 0")


def sampling_of(args: argparse.Namespace, pipeline: LatentVideoPipeline) -> Sampling:
    """How to sample, as the parsed arguments say; where nothing was said, the model's own."""
    asked = {name: getattr(args, argument) for argument, name in _GUIDANCE.items()}
    asked = {name: tuple(v) if isinstance(v, list) else v for name, v in asked.items() if v is not None}
    options = {name: getattr(args, name) for name in ("condition", "reconstruction_weight") if hasattr(args, name)}
    guidance = Guidance(**{"scale": pipeline.config.guidance, **asked})
    if args.mixed_precision != "auto" or getattr(args, "prompts", None) is None:  # --prompts looks first
        computed = precision.choose(args.mixed_precision, pipeline.device)
        print(precision.describe(computed, pipeline.device), file=sys.stderr, flush=True)
        options["precision"] = precision.dtype_of(computed)
    options["large"] = args.large
    return Sampling(steps=args.steps, solver=args.solver, guidance=guidance, **options)


@dataclass(frozen=True)
class Footage:
    """A clip or image that was given: `frames` uint8 [F,H,W,3], `fps` (of an image: the model's)."""

    path: Path
    frames: Tensor
    fps: float

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.frames.shape[1:3])


def read_footage(
    path: Path,
    pipeline: LatentVideoPipeline,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    large: bool = False,
) -> Footage:
    """A clip or image in a size that the model makes (`footage_size`). frames: so many from the start; None is all.

    Raises UserError (ClipError for the file itself).
    """
    if frames is not None and frames < 1:
        raise UserError(f"--frames {frames}: ask for at least 1")
    info = probe(path)
    size = footage_size(path, info, pipeline, height=height, width=width, large=large)
    pixels = _read_fit(path, info.frames if frames is None else min(frames, info.frames), size)
    return Footage(path, pixels, info.fps or pipeline.config.fps)


def _read_fit(path: Path, frames: int, size: tuple[int, int]) -> Tensor:
    """uint8 [F,H,W,3] of the first frames at a size, without all of them in memory at their own."""
    if frames <= CHUNK:
        return fit(read_frames(path, 0, frames, threads=0), *size)
    chunks, left = [], frames
    for chunk in read_chunks(path, CHUNK, CHUNK, threads=0):
        chunks.append(fit(chunk[:left], *size))
        left -= len(chunks[-1])
        if left <= 0:
            break
    return torch.cat(chunks)


def footage_size(
    path: Path,
    info: VideoInfo,
    pipeline: LatentVideoPipeline,
    *,
    height: int | None = None,
    width: int | None = None,
    large: bool = False,
) -> tuple[int, int]:
    """(height, width) to which a clip or image is scaled and cropped (`fit`); prints what of its pixels is changed.

    By default the legal size next to its own (`legal_size`), of at most the area that the model was trained on unless
    `large`. Where one of the two is given the other follows the aspect. Raises UserError for sizes that the model
    cannot make, and for those that cost too much (`limit.check_cost`).
    """
    native = info.height, info.width
    stride = pipeline.codec.spatial_stride * pipeline.transformer.config.patch
    if height is None and width is None:
        try:
            height, width = legal_size(*native, stride=stride, max_area=None if large else trained_area(pipeline))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    elif height is None:
        height = max(1, round(width * native[0] / native[1] / stride)) * stride
    elif width is None:
        width = max(1, round(height * native[1] / native[0] / stride)) * stride
    frames = 1 if info.frames == 1 else pipeline.config.frames
    check_cost(pipeline, [pipeline.latent_grid(frames, height, width)], large)
    if is_transparent(path):
        print(f"{path}: its transparent parts are taken as black", flush=True)
    beyond = "" if large or native[0] * native[1] <= trained_area(pipeline) else ", as the model was trained"
    if native != (height, width):
        print(f"{path}: {native[0]} x {native[1]} pixels scaled and cropped to {height} x {width}{beyond}", flush=True)
    return height, width


def read_picture(
    path: Path,
    pipeline: LatentVideoPipeline,
    *,
    height: int | None = None,
    width: int | None = None,
    large: bool = False,
) -> Footage:
    """As `read_footage`, of one frame. Raises UserError for a clip of several."""
    if (count := probe(path).frames) != 1:
        raise UserError(f"{path} has {count} frames where one picture is wanted: save the frame that you mean as a png")
    return read_footage(path, pipeline, height=height, width=width, large=large)


def read_mask(path: Path, footage: Footage) -> Tensor:
    """bool [F,H,W], or [H,W] of an image: where a mask for the footage is white (128 and more).

    Raises UserError where its size or length is not that of the footage's file, and for a transparent one.
    """
    info, clip = probe(path), probe(footage.path)
    if (info.height, info.width) != (clip.height, clip.width):
        raise UserError(
            f"mask {path} is {info.height} x {info.width} pixels, {footage.path} {clip.height} x {clip.width}: "
            "they must be of one size"
        )
    if info.frames not in (1, clip.frames):
        raise UserError(
            f"mask {path} has {info.frames} frames, {footage.path} {clip.frames}: give an image, or a frame for each"
        )
    if is_transparent(path):
        raise UserError(f"mask {path} is transparent in parts: save it without alpha, white where to repaint")
    pixels = _read_fit(path, min(len(footage.frames), info.frames), footage.size)
    white = pixels.float().mean(-1) >= 128
    return white[0] if info.frames == 1 else white


def is_transparent(path: Path) -> bool:
    """Whether an image has pixels that are not opaque (videos and gifs have none that count)."""
    if path.suffix.lower() not in IMAGE_ENDINGS:
        return False
    with Image.open(path) as image:
        return image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255


def numbered(path: Path, i: int, count: int) -> Path:
    """The output's name of the i-th of so many clips."""
    return path if count == 1 else path.with_name(f"{path.stem}-{i}{path.suffix}")


def write(path: Path, frames: Tensor, fps: float, said: str, *, sound: Footage | None = None, rate: float = 1) -> None:
    """Writes uint8 [F,H,W,3] by the ending of `path` and prints "path: said".

    sound: footage that the frames run along with, with `rate` frames for each of its own: its audio is copied where
    the output can hold it, and what is left out is said.
    """
    copied, codec = (False, None) if sound is None else copies_audio(sound.path, path)
    if codec is not None:
        copied = copied and abs(fps - rate * sound.fps) < 1e-3 * fps
        said += f" (with its audio, {codec})" if copied else f" (without its audio, {codec}: another speed or format)"
    try:
        if copied:
            with clip_writer(path, *frames.shape[1:3], fps, audio=sound.path) as append:
                append(frames)
        else:
            write_video(path, frames, fps)
    except (UserError, OSError, ValueError, RuntimeError) as error:  # PyAV's errors are of the last three
        raise UserError(saved_elsewhere(path, frames, fps, error)) from error
    print(f"{path}: {said}", flush=True)


def saved_elsewhere(path: Path, frames: Tensor, fps: float, error: Exception) -> str:
    """Writes a clip that its output did not take beside it, or where temporary files go, and says where it is."""
    why = f"{path} cannot be written ({' '.join(str(error).split()):.200})"
    digest = hashlib.sha256(str(path).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    for folder in (path.parent, Path(tempfile.gettempdir())):
        other = folder / f"clip-{digest}-{os.getpid()}.mp4"
        try:
            write_video(other, frames, fps)
        except (UserError, OSError, ValueError, RuntimeError):
            continue
        return f"{why}: the clip is in {other}"
    return f"{why}, nor can its folder or {tempfile.gettempdir()}: the clip is lost; make room and start again"


def write_all(path: Path, clips: Sequence[Tensor], fps: float, said: Sequence[str]) -> None:
    """As `write`, of several, numbered. One that cannot be written does not keep the others from it."""
    failed = []
    for i, (clip, words) in enumerate(zip(clips, said, strict=True)):
        try:
            write(numbered(path, i, len(clips)), clip, fps, words)
        except UserError as error:
            failed.append(str(error))
    if failed:
        raise UserError("; ".join(failed))


def check_stream(path: Path, fps: float | None = None) -> None:
    """As `check_output`, for what is written while it is made."""
    if path.suffix.lower() not in STREAMED:
        raise UserError(f"--output {path}: the name must end in {' or '.join(STREAMED)}, written as it is made")
    check_fps(fps)
    check_target(path)


def asked_frames(frames: int | None, seconds: float | None, fps: float) -> int:
    """The frames that --frames, or --seconds at so many a second, ask for. Raises UserError for none."""
    if frames is None and not (math.isfinite(seconds) and seconds * fps > 0.5):
        raise UserError(f"--seconds {seconds:g}: at {fps:g} fps this is less than a frame; ask for more")
    frames = round(seconds * fps) if frames is None else frames
    if frames < 1:
        raise UserError(f"--frames {frames}: ask for at least 1")
    return frames


def write_stream(
    path: Path,
    pieces: Iterable[Tensor],
    size: tuple[int, int],
    fps: float,
    frames: int,
    *,
    given: int = 0,
    sound: Path | None = None,
) -> None:
    """Writes an mp4 or webm of pieces uint8 [F,H,W,3], one in memory at a time, and shows how many of `frames` are.

    size: (height, width). sound: a video whose audio is copied, as far as it goes, where the output can hold it.
    After an error, or Ctrl-C, there is no file, but the frames so far are in one beside it, which the message names;
    not where no more than the first `given` are there, which were not made.
    """
    copied, codec = (False, None) if sound is None else copies_audio(sound, path)
    partial, done = partial_beside(path), 0
    try:
        with (
            clip_writer(
                path, *size, fps, audio=sound if copied else None, partial=lambda: partial if done > given else None
            ) as append,
            tqdm(total=frames, desc=path.name, unit="frame", disable=None) as bar,
        ):
            for piece in pieces:
                append(piece)
                done += len(piece)
                bar.update(len(piece))
    except BaseException as error:
        if not partial.is_file():
            raise
        word = f"what was made so far is in {partial}"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(word) from None
        if (said := message_of(error)) is not None:
            raise UserError(f"{said}; {word}") from error
        error.add_note(word)
        raise
    audio = "" if codec is None else f" (with the input's audio, {codec})" if copied else f" (without audio: {codec})"
    print(f"{path}: {frames} frames, {frames / fps:.1f} s{audio}", flush=True)


def partial_beside(path: Path) -> Path:
    """The first free name of NAME.partial.mp4, NAME.partial-1.mp4 and so on, for what was made of NAME.mp4."""
    number = 0
    while True:
        word = f".partial-{number}" if number else ".partial"
        found = path.with_name(f"{part_of(path.stem)}{word}{path.suffix}")
        if not os.path.lexists(found):
            return found
        number += 1


def legal_frames(pipeline: LatentVideoPipeline, frames: int | None, seconds: float | None, fps: float) -> int | None:
    """The frames that --frames or --seconds ask for, those of --seconds as the model makes them; None for neither."""
    if seconds is None:
        return frames
    asked, made = asked_frames(None, seconds, fps), frames_of(pipeline, seconds, fps)
    if made != asked:
        print(f"{seconds:g} s at {fps:g} fps: the model makes {made} frames, {made / fps:.3g} s", flush=True)
    return made


def frames_of(pipeline: LatentVideoPipeline, seconds: float, fps: float) -> int:
    """The length that the model makes next to so many seconds. Raises UserError for less than a frame."""
    stride = pipeline.codec.temporal_stride
    return 1 + max(0, round((asked_frames(None, seconds, fps) - 1) / stride)) * stride


def in_windows(
    task: Callable[..., Tensor], pipeline: LatentVideoPipeline, source: Footage, *words, large: bool, **more
):
    """A task over footage, in windows of the length that the model was trained on; `large`: as one clip."""
    frames = len(source.frames)
    window = frames if large else trained_frames(pipeline)
    if frames > window:
        print(f"{source.path}: {frames} frames, in windows of {window}, as the model was trained", flush=True)
    return task(pipeline, source.frames, *words, window=window, **more)


def note_size(pipeline: LatentVideoPipeline, frames: int, height: int | None = None, width: int | None = None) -> None:
    """Says on stderr where a clip is longer or larger than all that the model was trained on."""
    longest, area = trained_frames(pipeline), trained_area(pipeline)
    size = height or pipeline.config.height, width or pipeline.config.width
    beyond = [f"{frames} frames (at most {longest})"] if frames > longest else []
    beyond += [f"{size[0]} x {size[1]} pixels (at most {area:,})"] if size[0] * size[1] > area else []
    if beyond:
        print(f"note: the model was trained on less than {' and '.join(beyond)}", file=sys.stderr, flush=True)


def note_rate(pipeline: LatentVideoPipeline, fps: float, asked: float | None) -> None:
    """Says on stderr where the model does not know of a clip's `fps`; `asked`: what --fps said."""
    known, (low, high) = knows_rates(pipeline), trained_rates(pipeline) or (0.0, math.inf)
    note = ""
    if known and not 0.999 * low <= fps <= 1.001 * high:
        note = f"{fps:g} frames a second: the model was trained on {low:g} to {high:g}"
    elif not known and asked is not None and abs(asked - pipeline.config.fps) > 1e-3 * asked:
        note = (
            f"--fps {asked:g} plays the clip faster or slower, no more: the model was trained without "
            f"model.fps_condition, and things move as at its own {pipeline.config.fps:g}"
        )
    if note:
        print(f"note: {note}", file=sys.stderr, flush=True)


def note_condition(pipeline: LatentVideoPipeline, sampling: Sampling, *wanted: str) -> None:
    """Prints how what is given conditions a model that was trained without given frames, or without those `wanted`."""
    given, shares = set(pipeline.config.given), pipeline.config.given_shares or {}
    if wanted and given != {"plain"} and not given & set(wanted):
        total = sum(shares.values()) or 1
        said = ", ".join(f"{name} {shares[name] / total:.0%}" if name in shares else name for name in sorted(given))
        print(
            f"note: this model was trained with {said} of given frames, none of which is {' or '.join(wanted)}: it "
            "does this badly",
            file=sys.stderr,
            flush=True,
        )
    if tuple(pipeline.config.given) == ("plain",) and sampling.condition is None:
        print("this model was trained without given frames: what is given guides it (reconstruction)", flush=True)
