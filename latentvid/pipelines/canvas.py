"""Between the size of a clip and that in which a model works on it.

Axes: F frames, H height, W width of clips uint8 [F,H,W,3]; h w those of the model's pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from ..data.transforms import legal_size
from ..packing import patch_stride
from .latent_video import LatentVideoPipeline
from .limit import check_cost, trained_area

Size = tuple[int, int]
DISTORTION = 1.25  # of the aspect, by which a size that the model makes may be off


@dataclass(frozen=True)
class Canvas:
    """A clip of `native` (H, W) is scaled to `content`, where that is smaller, and its last row and column are repeated
    up to `size`, (h, w), whole multiples of the model's stride. What comes back is cut and scaled the other way."""

    native: Size
    content: Size
    size: Size

    @classmethod
    def of(cls, pipeline: LatentVideoPipeline, native: Size, frames: int, *, large: bool = False) -> Canvas:
        """The native size where it has at most the area that the model was trained on, or `large`; else the next one of
        that area. Where that would press a narrow clip out of shape by more than `DISTORTION`, its short side has the
        nearest whole number of strides and the long one follows: an area that may be some times larger. frames: of a
        window. Raises UserError for what costs too much (`limit.check_cost`)."""
        stride, area = pipeline.codec.spatial_stride * patch_stride(pipeline.transformer.patch), trained_area(pipeline)
        scale = 1.0 if large else min(1.0, math.sqrt(area / math.prod(native)))
        content = tuple(max(1, round(side * scale)) for side in native)
        if scale < 1 and min(native) >= stride:  # nothing to fill up, of nearly the same aspect
            content = legal_size(*native, stride=stride, max_area=max(area, stride**2))
            if _distortion(native, content) > DISTORTION:  # a narrow clip, of which one stride is a large part
                content = _of_short_side(native, min(native) * scale, stride)
        size = tuple(-(-side // stride) * stride for side in content)
        in_time = pipeline.codec.temporal_stride
        check_cost(pipeline, [pipeline.latent_grid(1 + -(-(frames - 1) // in_time) * in_time, *size)], large)
        return cls(native, content, size)

    @classmethod
    def exactly(cls, size: Size) -> Canvas:
        """Of clips that have a size that the model makes."""
        return cls(size, size, size)

    @property
    def scaled(self) -> bool:
        return self.native != self.content

    def into(self, frames: Tensor) -> Tensor:
        """uint8 [F,H,W,3] -> uint8 [F,h,w,3]."""
        pictures = _scaled(rearrange(frames, "F H W C -> F C H W"), self.content)
        if self.content == self.size:
            return rearrange(pictures, "F C h w -> F h w C").contiguous()
        return rearrange(nnf.pad(pictures.float(), self._beyond, mode="replicate").byte(), "F C h w -> F h w C")

    def mask_into(self, mask: Tensor) -> Tensor:
        """bool [F,H,W] -> bool [F,h,w], True wherever a pixel of the clip is."""
        if self.scaled:
            mask = nnf.adaptive_max_pool2d(mask[:, None].float(), self.content)[:, 0] > 0
        if self.content == self.size:
            return mask
        return nnf.pad(mask[:, None].float(), self._beyond, mode="replicate")[:, 0] > 0

    def mask_out(self, mask: Tensor) -> Tensor:
        """bool [F,h,w] -> bool [F,H,W], by the nearest pixel."""
        height, width = self.content
        return nnf.interpolate(mask[:, None, :height, :width].float(), size=self.native)[:, 0] > 0

    def out(self, frames: Tensor) -> Tensor:
        """[F,h,w,3] -> float [F,H,W,3], 0..255."""
        height, width = self.content
        pictures = rearrange(frames[:, :height, :width].float(), "F h w C -> F C h w")
        return rearrange(_scaled(pictures, self.native), "F C H W -> F H W C").clamp(0, 255)

    @property
    def _beyond(self) -> tuple[int, int, int, int]:
        down, right = (size - side for size, side in zip(self.size, self.content, strict=True))
        return 0, right, 0, down


def _distortion(native: Size, content: Size) -> float:
    """By how much the aspect of one is that of the other, 1 and above."""
    times = content[0] * native[1] / (content[1] * native[0])
    return max(times, 1 / times)


def _of_short_side(native: Size, short: float, stride: int) -> Size:
    """The size in strides, no side above native, whose short side is nearest to `short` and whose aspect to native."""
    by = max(1, min(round(short / stride), min(native) // stride)) * stride / min(native)
    return tuple(min(max(1, round(side * by / stride)), side // stride) * stride for side in native)


def _scaled(pictures: Tensor, size: Size) -> Tensor:
    """[F,C,H,W] at another size, by antialiased bicubic; as they are where they have it."""
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    return resize(pictures, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
