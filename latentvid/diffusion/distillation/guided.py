"""Guidance distillation (Meng et al. 2023, "On distillation of guided diffusion models", section 3.1): the student is
told the scale, and predicts in one pass what guidance makes of two.

Axes: T tokens of a pack, P token features, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...packing import Packed
from ...rng import generator
from ..guidance import classifier_free, guided_at
from ..solvers import Predict
from .point import Point


def draw_scales(low: float, high: float, seed: int, numbers: Sequence[int]) -> Tensor:
    """A scale [N] for each sample, even between low and high, keyed by its global number."""
    draws = [torch.rand((), generator=generator(seed, number, "guidance")) for number in numbers]
    return low + (high - low) * torch.stack(draws)


def with_guidance(
    conditional: Predict,
    unconditional: Predict,
    scale: Tensor,
    layout: Packed,
    interval: tuple[float, float] | None = None,
) -> Predict:
    """The teacher's guided prediction, at the scale [N] of each sample, at noise levels within the interval (None: at
    all); outside of it, the conditional one."""
    of_tokens = scale.index_select(0, layout.segment)[:, None]

    def predict(z: Tensor, t: Tensor) -> Tensor:
        found = conditional(z, t)
        guided = guided_at(t, interval).index_select(0, layout.frame)[:, None]
        return torch.where(guided, classifier_free(found, unconditional(z, t), of_tokens), found)

    return predict


def guided_target(point: Point, teacher: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What the student is to predict [T,P], and what the teacher predicts there, which is the same."""
    told = teacher(point.z, point.t)
    return told, told
