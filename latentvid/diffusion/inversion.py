"""Inversion: from data to the noise from which the Euler solver makes it again.

Axes: T tokens of a pack, P token features, R latent frames, N samples, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..packing import Packed
from ..transfer import to_device
from .scheduler import LatentVideoScheduler
from .solvers import Predict

ITERATIONS = 1  # docs/diffusion.md: more brings decibels, and noise that is less like noise


@dataclass(frozen=True)
class Inverted:
    """z [T,P] at levels[0], and by how much the last iteration of each step still moved each sample, rms [K,N]."""

    z: Tensor
    moved: Tensor


def invert(
    scheduler: LatentVideoScheduler,
    predict: Predict,
    x: Tensor,
    levels: Tensor,
    layout: Packed,
    *,
    iterations: int = ITERATIONS,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Inverted:
    """The z at levels[0] from which `solve(..., solver="euler")` over the same levels [K+1,R] comes to x [T,P].

    For each step back from level s to t, z_t is sought that the step takes to z_s. The first guess is DDIM inversion
    (Song et al. 2020, section 4.3; for rectified flow, Euler's step backward), with the network at (z_s, t) and not at
    (z_s, s), since s = 0 is a given frame to it. Each iteration then adds to the guess what the step misses z_s by
    (Pan et al. 2023, section 3.2, for any target), or where that misses by more than before, half of it to the guess
    before. This takes K (1 + iterations) calls in all. Frames whose level stays do not move. visit: is told each z, and
    the number of its levels, from K - 1 down to 0.
    """
    if iterations < 0:
        raise ValueError(f"{iterations} iterations: give 0 (DDIM inversion) or more")
    z, moved = x, []
    for i in progress(range(len(levels) - 2, -1, -1)):
        t, s = (level.index_select(0, layout.frame)[:, None] for level in (levels[i], levels[i + 1]))
        goal, best, change, least, rate = z, z, z, math.inf, 1.0
        gain = _gain(scheduler, t, s)
        for _ in range(iterations + 1):
            miss = (goal - scheduler.step(predict(z, levels[i]), t, s, z)) / gain
            size = _rms(miss, layout)  # [N]
            better = size < least
            rate = torch.where(better, rate, rate / 2)
            least = torch.where(better, size, least)
            here = better.index_select(0, layout.segment)[:, None]
            best, change = torch.where(here, z, best), torch.where(here, miss, change)
            z = best + rate.index_select(0, layout.segment)[:, None] * change
        moved.append(_rms(z - best, layout))
        if visit is not None:
            visit(i, z)
    return Inverted(z, torch.stack(moved[::-1]))


def _gain(scheduler: LatentVideoScheduler, t: Tensor, s: Tensor) -> Tensor:
    """What a step from t to s multiplies z by where the network's velocity, which it adds to that, is held fixed.

    1 on the straight line; cos(phi_t - phi_s) where variance is kept, with tan(phi) = sigma / (alpha deviation).
    """
    path = scheduler.path
    if path.straight:
        return torch.ones_like(t)
    (alpha, sigma), (alpha_s, sigma_s) = (path.coefficients(level) for level in (t, s))
    return (alpha * alpha_s + sigma * sigma_s / path.deviation**2).clamp_min(0.5)  # 0 for one step over the whole path


def _rms(x: Tensor, layout: Packed) -> Tensor:
    """[N] of x [T,P]."""
    total = x.new_zeros(layout.segments).index_add(0, layout.segment, x.square().mean(1))
    return (total / to_device(layout.lengths, x.device)).sqrt()
