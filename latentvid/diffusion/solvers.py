"""Solvers: from noise to data over given noise levels, as loops over a denoiser.

Axes: T tokens of a pack, P token features, R noise rows, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from ..errors import UserError
from ..packing import Packed
from .scheduler import LatentVideoScheduler

Predict = Callable[[Tensor, Tensor], Tensor]  # (z [T,P], noise levels [R]) -> the scheduler's target [T,P]
Noise = Callable[[], Tensor]  # fresh noise [T,P]


class Euler:
    """The deterministic step of first order: DDIM, and Euler's step of the flow."""

    stochastic = False

    def __init__(self, scheduler: LatentVideoScheduler, levels: Tensor, layout: Packed, noise: Noise | None) -> None:
        self.scheduler, self.noise = scheduler, noise
        self.levels = levels.index_select(1, layout.row)[..., None]  # [K+1,T,1]
        self.rows = levels

    def step(self, predict: Predict, i: int, z: Tensor) -> Tensor:
        noise = self.noise() if self.stochastic else None
        return self.scheduler.step(predict(z, self.rows[i]), self.levels[i], self.levels[i + 1], z, noise)


class Ancestral(Euler):
    """DDPM's step: the posterior's noise is added."""

    stochastic = True


SOLVERS = {"euler": Euler, "ddpm": Ancestral}


def solve(
    scheduler: LatentVideoScheduler,
    predict: Predict,
    z: Tensor,
    levels: Tensor,
    layout: Packed,
    *,
    solver: str = "euler",
    noise: Noise | None = None,
    after: Callable[[Tensor, Tensor], Tensor] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """z [T,P] at levels[0] -> at levels[K]: levels [K+1,R] fall, or stay where a row is given.

    noise: makes fresh noise, for the solvers that add some. after: changes the state after each step, by its levels
    [R], such as to put known tokens back. Raises UserError for an unknown solver.
    """
    if solver not in SOLVERS:
        raise UserError(f"solver {solver!r}: one of {', '.join(SOLVERS)}")
    method = SOLVERS[solver](scheduler, levels, layout, noise)
    for i in progress(range(len(levels) - 1)):
        z = method.step(predict, i, z)
        if after is not None:
            z = after(z, levels[i + 1])
    return z
