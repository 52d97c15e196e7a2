"""PSNR and SSIM of 8-bit frames, of clips and of streams.

Axes: F frames, H W height and width in pixels, P planes. Frames are uint8 [F,H,W,3], on any device.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

from ...errors import UserError

MAX_PSNR = 100.0  # dB, of clips that are equal: finite, so that means and JSON can hold it
SSIM_WINDOW = 11  # pixels, Gaussian
SIGMA = 1.5
PEAK = 255.0
STRIP, BLOCK = 48, 64  # rows and columns that are blurred together: a strip's planes stay in the processor's cache


class Fidelity:
    """Scores of pairs of frames that come in pieces: nothing but sums is kept."""

    def __init__(self) -> None:
        self.frames, self.values = 0, 0
        self._error, self._similarity = 0.0, 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Pieces of both clips, [F,H,W,3]. Raises ValueError for other types or unequal shapes."""
        _check_pair(a, b)
        for first, second in zip(a, b, strict=True):
            self._error += float((first.float() - second.float()).square().sum(dtype=torch.float64))
            self._similarity += ssim_of_frame(first, second)
        self.frames += len(a)
        self.values += a.numel()

    @property
    def psnr(self) -> float:
        """Peak signal to noise ratio in dB, from the mean square over all that came; `MAX_PSNR` where all is equal."""
        error = self._error / self.values
        return min(MAX_PSNR, 10 * math.log10(PEAK**2 / error)) if error else MAX_PSNR

    @property
    def ssim(self) -> float:
        """Mean over frames of the structural similarity."""
        return self._similarity / self.frames


def _check_pair(a: Tensor, b: Tensor) -> None:
    for frames in (a, b):
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
            raise ValueError(f"PSNR and SSIM want uint8 [F,H,W,3], got {frames.dtype} {list(frames.shape)}")
    if a.shape != b.shape:
        raise ValueError(f"clips of {list(a.shape)} and {list(b.shape)} cannot be compared: give equal shapes")


def ssim_of_frame(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004, equation 13) of RGB frames uint8 [H,W,3], the mean over the colours.

    11 x 11 Gaussian window with sigma 1.5, reflected at the borders. The blur is two products with banded matrices,
    strip by strip: 3 times as fast as convolutions on a CPU. Raises UserError for frames smaller than the window.
    """
    height, width, _ = a.shape
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"{height} x {width} pixels: SSIM's window is {SSIM_WINDOW} x {SSIM_WINDOW}, give clips at least that large"
        )
    x, y = (rearrange(frame, "H W C -> C H W").float() for frame in (a, b))
    planes = torch.cat([x, y, x.square() + y.square(), x * y])  # [12,H,W]; variances are needed as a sum only
    down, across = (_blur_matrix(side).to(planes.device) for side in (height, width))
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    total = planes.new_zeros((), dtype=torch.float64)
    for top in range(0, height, STRIP):
        seen, made = _reach(top, STRIP, height)
        mean_x, mean_y, squares, products = _blur_rows(down[made, seen] @ planes[:, seen], across).chunk(4)
        product, square = mean_x * mean_y, mean_x.square() + mean_y.square()
        index = (2 * product + c1) * (2 * (products - product) + c2) / ((square + c1) * (squares - square + c2))
        total += index.sum(dtype=torch.float64)
    return float(total) / (3 * height * width)


def _blur_rows(planes: Tensor, across: Tensor) -> Tensor:
    """[P,H,W] blurred along W."""
    rows, width = planes.flatten(0, 1), planes.shape[2]
    out = torch.empty_like(rows)
    for left in range(0, width, BLOCK):
        seen, made = _reach(left, BLOCK, width)
        torch.mm(rows[:, seen], across[made, seen].T, out=out[:, made])
    return out.unflatten(0, planes.shape[:2])


def _reach(start: int, count: int, side: int) -> tuple[slice, slice]:
    """The positions that `count` blurred ones from `start` on depend on, and these themselves."""
    end, radius = min(side, start + count), SSIM_WINDOW // 2
    return slice(max(0, start - radius), min(side, end + radius)), slice(start, end)


@lru_cache(maxsize=8)
def _blur_matrix(side: int) -> Tensor:
    """[side,side]: row i holds the Gaussian around i, reflected at both ends (the end itself is not repeated)."""
    offsets = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    taps = torch.exp(-offsets.double().square() / (2 * SIGMA**2))
    at = (torch.arange(side)[:, None] + offsets).abs()
    at = torch.where(at > side - 1, 2 * (side - 1) - at, at)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add_(1, at, (taps / taps.sum()).expand(side, -1)).float()
