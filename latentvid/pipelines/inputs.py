"""Clips and pictures that inference scripts are given, in sizes that the model makes.

Axes: F frames, H height, W width in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..data.transforms import fit, legal_size
from ..data.video.kinds import IMAGE_ENDINGS
from ..data.video.reading import VideoInfo, probe, read_frames
from ..data.video.writing import bits_of
from ..errors import UserError
from ..packing import patch_stride
from .latent_video import LatentVideoPipeline
from .limit import check_cost, trained_area


@dataclass(frozen=True)
class Footage:
    """A clip or image that was given: `frames` uint8 [F,H,W,3], `fps` (of an image: the model's)."""

    path: Path
    frames: Tensor
    fps: float

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.frames.shape[1:3])


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
    stride = pipeline.codec.spatial_stride * patch_stride(pipeline.transformer.patch)
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


def read_picture(path: Path, pipeline: LatentVideoPipeline, **size: Any) -> Footage:
    """A picture in a size that the model makes: `size` is as in `footage_size`. Raises UserError (ClipError for the
    file itself), also for a clip of several frames."""
    info = probe(path)
    if info.frames != 1:
        raise UserError(
            f"{path} has {info.frames} frames where one picture is wanted: save the frame that you mean as a png"
        )
    size = footage_size(path, info, pipeline, **size)
    return Footage(path, fit(read_frames(path, 0, 1, threads=0), *size), info.fps or pipeline.config.fps)


def say_depth(path: Path) -> None:
    """Prints where a clip has finer colours than what is written of it."""
    if (bits := bits_of(path)) > 8:
        print(f"{path}: {bits} bits a channel, read and written with 8", flush=True)


def is_transparent(path: Path) -> bool:
    """Whether an image has pixels that are not opaque (videos and gifs have none that count)."""
    if path.suffix.lower() not in IMAGE_ENDINGS:
        return False
    with Image.open(path) as image:
        return image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255
