"""What the inference scripts share once their options are read (arguments.py): reading what is given, writing results.

Axes: F frames, H height, W width in pixels.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .. import precision
from ..data.kinds import IMAGE_ENDINGS
from ..data.transforms import fit, legal_size
from ..data.video import VideoInfo, probe, read_frames
from ..data.writing import clip_writer, copies_audio, write_video
from ..diffusion.guidance import Guidance
from ..errors import UserError
from .defaults import ENDINGS
from .latent_video import LatentVideoPipeline
from .sampling import Sampling

_GUIDANCE = {
    "guidance": "scale",
    "guidance_rescale": "rescale",
    "guidance_interval": "interval",
    "zero_init": "zero_init",
}


def check_output(path: Path, fps: float | None = None) -> None:
    """Raises UserError for an ending or a rate that cannot be written: before the work, not after it."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {path}: the name must end in {', '.join(ENDINGS)}")
    check_fps(fps)


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
) -> Footage:
    """A clip or image in a size that the model makes (`footage_size`). frames: so many from the start; None is all.

    Raises UserError (ClipError for the file itself).
    """
    if frames is not None and frames < 1:
        raise UserError(f"--frames {frames}: ask for at least 1")
    info = probe(path)
    height, width = footage_size(path, info, pipeline, height=height, width=width)
    pixels = read_frames(path, 0, None if frames is None else min(frames, info.frames), threads=0)
    return Footage(path, fit(pixels, height, width), info.fps or pipeline.config.fps)


def footage_size(
    path: Path, info: VideoInfo, pipeline: LatentVideoPipeline, *, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """(height, width) to which a clip or image is scaled and cropped (`fit`); prints what of its pixels is changed.

    By default the legal size next to its own (`legal_size`). Where one of the two is given the other follows the
    aspect. Raises UserError for sizes that the model cannot make.
    """
    native = info.height, info.width
    stride = pipeline.codec.spatial_stride * pipeline.transformer.config.patch
    if height is None and width is None:
        try:
            height, width = legal_size(*native, stride=stride, max_area=None)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    elif height is None:
        height = max(1, round(width * native[0] / native[1] / stride)) * stride
    elif width is None:
        width = max(1, round(height * native[1] / native[0] / stride)) * stride
    pipeline.latent_grid(1, height, width)
    if is_transparent(path):
        print(f"{path}: its transparent parts are taken as black", flush=True)
    if native != (height, width):
        print(f"{path}: {native[0]} x {native[1]} pixels scaled and cropped to {height} x {width}", flush=True)
    return height, width


def read_picture(
    path: Path, pipeline: LatentVideoPipeline, *, height: int | None = None, width: int | None = None
) -> Footage:
    """As `read_footage`, of one frame. Raises UserError for a clip of several."""
    if (count := probe(path).frames) != 1:
        raise UserError(f"{path} has {count} frames where one picture is wanted: save the frame that you mean as a png")
    return read_footage(path, pipeline, height=height, width=width)


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
    pixels = fit(read_frames(path, 0, min(len(footage.frames), info.frames), threads=0), *footage.size)
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
    copied, codec = (False, None) if sound is None else copies_audio(sound.path)
    if codec is not None:
        copied = copied and path.suffix.lower() == ".mp4" and abs(fps - rate * sound.fps) < 1e-3 * fps
        said += f" (with its audio, {codec})" if copied else f" (without its audio, {codec}: another speed or format)"
    if copied:
        with clip_writer(path, *frames.shape[1:3], fps, audio=sound.path) as append:
            append(frames)
    else:
        write_video(path, frames, fps)
    print(f"{path}: {said}", flush=True)


def check_stream(path: Path, fps: float | None = None) -> None:
    """As `check_output`, for what is written while it is made."""
    if path.suffix.lower() != ".mp4":
        raise UserError(f"--output {path}: the name must end in .mp4, which alone can be written while it is made")
    check_fps(fps)


def asked_frames(frames: int | None, seconds: float | None, fps: float) -> int:
    """The frames that --frames, or --seconds at so many a second, ask for. Raises UserError for none."""
    if frames is None and not (math.isfinite(seconds) and seconds * fps > 0.5):
        raise UserError(f"--seconds {seconds:g}: at {fps:g} fps this is less than a frame; ask for more")
    frames = round(seconds * fps) if frames is None else frames
    if frames < 1:
        raise UserError(f"--frames {frames}: ask for at least 1")
    return frames


def write_stream(
    path: Path, pieces: Iterable[Tensor], size: tuple[int, int], fps: float, frames: int, *, sound: Path | None = None
) -> None:
    """Writes an mp4 of pieces uint8 [F,H,W,3], one in memory at a time, and shows how many of `frames` are done.

    size: (height, width). sound: a video whose audio is copied, as far as it goes, where an mp4 can hold it.
    After an error there is no file.
    """
    copied, codec = (False, None) if sound is None else copies_audio(sound)
    with (
        clip_writer(path, *size, fps, audio=sound if copied else None) as append,
        tqdm(total=frames, desc=path.name, unit="frame", disable=None) as bar,
    ):
        for piece in pieces:
            append(piece)
            bar.update(len(piece))
    audio = "" if codec is None else f" (with the input's audio, {codec})" if copied else f" (without audio: {codec})"
    print(f"{path}: {frames} frames, {frames / fps:.1f} s{audio}", flush=True)


def note_condition(pipeline: LatentVideoPipeline, sampling: Sampling) -> None:
    """Prints how what is given conditions a model that was trained without given frames."""
    if tuple(pipeline.config.given) == ("plain",) and sampling.condition is None:
        print("this model was trained without given frames: what is given guides it (reconstruction)", flush=True)
