"""Legal lengths and sizes, resize and crop, pixels to and from [-1,1]. Pure functions.

Axes: F frames, H height, W width of what comes in; `height`, `width` of what goes out.
"""

import math
from collections.abc import Iterator
from contextlib import closing

import torch
from einops import rearrange
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from ..errors import UserError


def legal_frames(frames: int, temporal_stride: int = 4) -> int:
    """The largest 1 + k * temporal_stride that is not above `frames`: what a causal VAE represents."""
    if frames < 1 or temporal_stride < 1:
        raise ValueError(f"frames and temporal_stride must be at least 1, got {frames} and {temporal_stride}")
    return 1 + (frames - 1) // temporal_stride * temporal_stride


def legal_size(height: int, width: int, *, stride: int, max_area: int | None) -> tuple[int, int]:
    """(height, width) in pixels, multiples of `stride`, for a clip of that native size.

    Neither side above native, area at most `max_area` (pixels; None: no limit), as large as these allow within one
    stride a side, and of those sizes the one whose aspect ratio is nearest to native (the larger where two are equal).
    Raises UserError where a side, or `max_area`, does not hold one stride.
    """
    if min(height, width) < stride:
        raise UserError(f"a clip of {height}x{width} is smaller than one stride ({stride}); remove it or scale it up")
    limit = height * width if max_area is None else max_area
    if limit < stride * stride:
        raise UserError(f"max_area {limit} holds no {stride}x{stride} square; raise it to at least {stride * stride}")
    scale = min(1.0, math.sqrt(limit / (height * width)))
    sizes = [
        (h, w)
        for h in _multiples_around(height * scale, stride, height)
        for w in _multiples_around(width * scale, stride, width)
        if h * w <= limit
    ]
    if not sizes:  # so long a clip that its short side is held at one stride: shorten the long side
        longest = limit // stride // stride * stride
        sizes = [(stride, longest) if height <= width else (longest, stride)]
    return min(sizes, key=lambda size: (abs(math.log(size[0] * width / (size[1] * height))), -size[0] * size[1]))


def _multiples_around(side: float, stride: int, native: int) -> list[int]:
    below = max(1, int(side / stride + 1e-9)) * stride
    return [size for size in (below, below + stride) if size <= native]


def fit(frames: Tensor, height: int, width: int, *, crop: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """uint8 [F,H,W,3] -> uint8 [F,height,width,3].

    The whole picture is scaled (antialiased bicubic) until it just covers height x width, then cut; `crop` says
    where, as fractions 0..1 of the free room (down, across; 0.5 is the middle). Where the scale is 1 nothing is
    resampled: the pixels are exact.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"fit wants uint8 [F,H,W,3], got {frames.dtype} {list(frames.shape)}")
    if not all(0.0 <= fraction <= 1.0 for fraction in crop):
        raise ValueError(f"crop wants two fractions 0..1, got {crop}")
    native_height, native_width = frames.shape[1:3]
    scale = max(height / native_height, width / native_width)
    cover = max(height, round(native_height * scale)), max(width, round(native_width * scale))
    if cover != (native_height, native_width):
        pictures = rearrange(frames, "f h w c -> f c h w")
        pictures = resize(pictures, list(cover), interpolation=InterpolationMode.BICUBIC, antialias=True)
        frames = rearrange(pictures, "f c h w -> f h w c")
    top, left = (
        int(fraction * (have - want) + 0.5) for fraction, have, want in zip(crop, cover, (height, width), strict=True)
    )
    return frames[:, top : top + height, left : left + width]


def first_frames(chunks: Iterator[Tensor], frames: int) -> Iterator[Tensor]:
    """Chunks [F,H,W,3] up to so many frames in all; what gives them is closed then."""
    with closing(chunks):
        for chunk in chunks:
            yield chunk[:frames]
            frames -= len(chunk)
            if frames <= 0:
                return


def from_uint8(pixels: Tensor) -> Tensor:
    """uint8 [..., F,H,W,3] -> float32 [..., 3,F,H,W] in [-1,1]."""
    video = rearrange(pixels, "... f h w c -> ... c f h w").to(torch.float32, memory_format=torch.contiguous_format)
    return video.div_(127.5).sub_(1.0)


def resize_and_crop(frames: Tensor, height: int, width: int, *, crop: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """uint8 [F,H,W,3] -> float32 [3,F,height,width] in [-1,1], by `fit`."""
    return from_uint8(fit(frames, height, width, crop=crop))


def to_uint8(video: Tensor) -> Tensor:
    """float [3,F,H,W] in [-1,1] (beyond is clipped) -> uint8 [F,H,W,3]. Undoes `from_uint8` exactly."""
    pixels = video.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "c f h w -> f h w c").contiguous()
