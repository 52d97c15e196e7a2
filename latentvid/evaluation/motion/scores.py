"""How much clips flicker and move: temporal flicker, warping error, motion, dynamic degree.

Axes: F frames, H W height and width in pixels, n rows, D columns.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ...errors import ClipError
from ...words import counted
from ..mean_score import MeanScore
from ..rows import Clip, check_motion, check_size
from .flow import SMALLEST, open_flow, visible, warp

RATE = 8.0  # frames a second at which the dynamic degree looks
FASTEST = 0.05  # share of the pixels, the fastest, whose mean is a pair's speed
SPEED = 6.0 / 256  # of the shorter side, in a frame at RATE: faster is motion
SHARE = 4 / 16  # of the frames that must be moving


class FlickerRows:
    """A row a pair of neighbouring frames: their mean absolute difference, 0..255."""

    name = "flicker"
    fingerprint = "flicker: mean absolute difference of neighbouring frames"
    needs = frozenset()

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        self.device = device  # no weights are needed

    def __call__(self, clip: Clip) -> Tensor:
        check_motion(clip)
        frames = clip.pixels.to(self.device)
        steps = [(b.float() - a.float()).abs().mean() for a, b in zip(frames[:-1], frames[1:], strict=True)]
        return torch.stack(steps)[:, None].cpu()


class MotionRows:
    """One row a clip, float64: warping error, mean speed in pixels a frame, and 1 where it moves, else 0."""

    name = "motion"
    needs = frozenset()

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        self.flow = open_flow(weights, device)
        self.fingerprint = f"motion: {self.flow.method}"

    @torch.no_grad()
    def __call__(self, clip: Clip) -> Tensor:
        check_motion(clip)
        check_size(clip, SMALLEST, "motion")
        count, height, width, _ = clip.pixels.shape
        frames, step = clip.pixels.to(self.flow.device), stride(clip.fps)
        if count <= step:
            raise ClipError(
                clip.name,
                "too-short",
                f"{counted(count, 'frame')} at {clip.fps:g} a second do not reach from one of {RATE:g} frames a second "
                "to the next, where the dynamic degree looks: give longer clips",
            )
        errors, speeds, fast = [], [], []
        for a, b in zip(frames[:-1], frames[1:], strict=True):
            forward, backward = self.flow(a, b), self.flow(b, a)
            errors.append(warping_error(a, b, forward, backward))
            speeds.append(float(forward.norm(dim=-1).mean()))
            if step == 1:
                fast.append(fastest(forward))
        looked = frames[::step]
        if step > 1:
            fast = [fastest(self.flow(a, b)) for a, b in zip(looked[:-1], looked[1:], strict=True)]
        moving = moves(fast, len(looked), min(height, width), clip.fps)
        return torch.tensor([[fmean(errors), fmean(speeds), moving]], dtype=torch.float64)


def warping_error(a: Tensor, b: Tensor, forward: Tensor, backward: Tensor) -> float:
    """Of two frames uint8 [H,W,3] with the flows [H,W,2] from one to the other and back; 0..1, of colours in 0..1.

    The mean over the pixels of `a` that are visible in `b`, and over colours, of the squared difference of `a` and `b`
    warped to it (E_warp of Lai et al. 2018, as their code has it: mean, not sum, over colours). Where the flows leave
    no visible pixel it is the mean over all of them: not 0, as there, since such clips are the worst.
    """
    seen, _ = warp(b.float() / 255, forward)
    squares = (seen - a.float() / 255).square().mean(dim=-1)  # [H,W]
    shown = visible(forward, backward)
    return float((squares[shown] if shown.any() else squares).mean(dtype=torch.float64))


def fastest(flow: Tensor) -> float:
    """The mean speed, pixels, of the fastest 5 % of the pixels of a flow [H,W,2] (VBench, Huang et al. 2024)."""
    speed = flow.norm(dim=-1).flatten()
    return float(speed.topk(max(1, int(FASTEST * len(speed)))).values.mean())


def stride(fps: float) -> int:
    """Every which frame the dynamic degree looks at: about `RATE` a second. Raises ValueError for no frame rate."""
    if not fps > 0:
        raise ValueError(f"{fps} frames a second: give the rate that the clip is shown at")
    return max(1, round(fps / RATE))


def moves(fast: list[float], frames: int, side: int, fps: float) -> bool:
    """VBench's dynamic degree of one clip, from `fastest` of each pair of the `frames` looked at.

    It moves where at least round(4 frames / 16) pairs (and at least 1) are faster than 6 side / 256 pixels, times
    8 / fps below 8 frames a second; `side` is the shorter one.
    """
    limit = SPEED * side * max(1.0, RATE / fps)
    return sum(speed > limit for speed in fast) >= max(1, round(SHARE * frames))


MOTION_SCORES = (
    MeanScore(name="flicker", extractor="flicker", compares="none", better="lower"),
    MeanScore(name="warping_error", extractor="motion", compares="none", better="lower"),
    MeanScore(name="motion", extractor="motion", compares="none", better="neither", column=1),
    MeanScore(name="dynamic_degree", extractor="motion", compares="none", better="neither", column=2),
)
