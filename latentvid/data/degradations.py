"""What makes a clip worse, so that a model learns to make it better: blur, area resize, coding, fewer frames.

| kind     | what is done                                                             | amount                        |
|----------|--------------------------------------------------------------------------|-------------------------------|
| `blur`   | a Gaussian, cut at 3 of its deviations, with borders repeated            | its deviation, pixels         |
| `resize` | each pixel is the mean of the area that it covers                        | times that sides are shorter  |
| `h264`   | coded by x264 and decoded again (4:2:0 where both sides are even)        | CRF, rounded                  |
| `frames` | the first of so many frames is kept                                      | how many                      |

Axes: F frames, H height, W width; clips are uint8 [F,H,W,3], and each kind gives such.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import av
import numpy as np
import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize as resample

from ..references import Degradation
from .video.showing import Converter
from .video.writing import in_memory

FPS = 25.0  # that the coder is told


def degraded(pixels: Tensor, what: Sequence[Degradation], size: tuple[int, int], source: torch.Generator) -> Tensor:
    """A clip after all of it, in order, scaled to (H, W) `size`. Two numbers are drawn from `source` for each, used or
    not: whether it is done, and how much of it."""
    for each in what:
        chance, place = torch.rand(2, generator=source, dtype=torch.float64).tolist()
        low, high = each.amount
        if chance < each.share:
            pixels = _TABLE[each.kind](pixels, low + (high - low) * place)
    return stretched(pixels, *size)


def stretched(pixels: Tensor, height: int, width: int) -> Tensor:
    """The whole picture in that size, whatever its aspect: antialiased bicubic; as it is where the size is its own."""
    if tuple(pixels.shape[1:3]) == (height, width):
        return pixels.contiguous()
    pictures = rearrange(pixels, "f h w c -> f c h w")
    pictures = resample(pictures, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return rearrange(pictures, "f c h w -> f h w c").contiguous()


def blur(pixels: Tensor, deviation: float) -> Tensor:
    reach = math.ceil(3 * deviation)
    if not reach:
        return pixels
    weights = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * deviation**2))
    weights = weights / weights.sum()
    x = rearrange(pixels, "f h w c -> (f c) 1 h w").float()
    x = nnf.conv2d(nnf.pad(x, (0, 0, reach, reach), mode="replicate"), weights[None, None, :, None])
    x = nnf.conv2d(nnf.pad(x, (reach, reach, 0, 0), mode="replicate"), weights[None, None, None, :])
    return rearrange(_rounded(x), "(f c) 1 h w -> f h w c", c=3)


def resize(pixels: Tensor, factor: float) -> Tensor:
    size = [max(1, round(side / factor)) for side in pixels.shape[1:3]]
    x = nnf.interpolate(rearrange(pixels, "f h w c -> f c h w").float(), size=size, mode="area")
    return rearrange(_rounded(x), "f c h w -> f h w c")


def h264(pixels: Tensor, crf: float) -> Tensor:
    found, convert = np.empty(tuple(pixels.shape), np.uint8), Converter("a coded clip")
    with av.open(in_memory(pixels, FPS, round(crf))) as video:
        for room, frame in zip(found, video.decode(video=0), strict=True):
            convert(frame).write(room)
    return torch.from_numpy(found)


def frames(pixels: Tensor, factor: float) -> Tensor:
    return pixels[:: int(factor)]


_TABLE: dict[str, Callable[[Tensor, float], Tensor]] = {"blur": blur, "resize": resize, "h264": h264, "frames": frames}


def _rounded(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)
