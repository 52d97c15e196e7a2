"""FlowEdit: from data to the data that another prompt wants, without the noise between (Kulikov et al. 2024).

Axes: T tokens of a pack, P token features, R latent frames, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..packing import Packed
from .scheduler import LatentVideoScheduler
from .solvers import Noise, Predict, solve


def flow_edit(
    scheduler: LatentVideoScheduler,
    source: Predict,
    target: Predict,
    x: Tensor,
    levels: Tensor,
    target_levels: Tensor,
    layout: Packed,
    noise: Noise,
    *,
    n_min: int = 0,
    n_avg: int = 1,
    clean: Tensor | None = None,
    known: Tensor | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """What x [T,P] becomes along the difference of two velocities (algorithm 1 of the paper): [T,P].

    At each level t, of most noise first, x is noised, y = (1 - t) x + t N. One network call sees y, with the source
    prompt, another sees z + y - x, with the target prompt, where z begins as x; z moves by the difference of the two
    velocities (eq. 9), the mean over `n_avg` draws of N. The last `n_min` of the K steps are ordinary ones of the
    target, from z + y - x with one more draw of N. This takes 2 n_avg (K - n_min) + n_min calls.

    The formulas are of the straight line. Every path is that line but for a factor: z / (alpha + sigma) lies on it at
    t = sigma / (alpha + sigma), and the velocity is eps - x of what the network predicts. So any path and target does.

    levels, target_levels: [K+1,R], of the source and of the target, in which frames that are given have level 0.
    clean [T,P], known bool [T,1]: what the target's given frames are, and which tokens else are to be as there.
    """
    clean = x if clean is None else clean
    rows = _tokens(target_levels, layout)  # [K+1,T,1]
    given = rows[0] == 0  # [T,1]: the frames whose level is 0 throughout
    known = given if known is None else given | known
    z, changes = torch.where(known, clean, x), len(levels) - 1 - n_min
    sides = ((source, levels, _tokens(levels, layout)), (target, target_levels, rows))

    def pair(z: Tensor, i: int) -> list[Tensor]:
        """The source and the target at levels[i], on the straight line, with one draw of noise."""
        eps = noise()
        y, wanted = (_line(scheduler, data, eps, at[i]) for data, (_, _, at) in zip((x, clean), sides, strict=True))
        return [y, torch.where(known, wanted, z + y - x)]

    for i in progress(range(changes)):
        total = torch.zeros_like(z)
        for _ in range(n_avg):
            of_source, of_target = (
                _velocity(scheduler, predict, y, per_frame[i], at[i])
                for y, (predict, per_frame, at) in zip(pair(z, i), sides, strict=True)
            )
            total += of_target - of_source
        step = scheduler.path.line(rows[i + 1]) - scheduler.path.line(rows[i])  # below 0
        z = torch.where(known, clean, z + step * total / n_avg)
    if n_min == 0:
        return z
    _, begin = pair(z, changes)
    alpha, sigma = scheduler.path.coefficients(rows[changes])
    eps = noise()

    def put_back(z: Tensor, t: Tensor) -> Tensor:
        return torch.where(known & ~given, scheduler.mix(clean, eps, t.index_select(0, layout.frame)[:, None]), z)

    begin = put_back((alpha + sigma) * begin, target_levels[changes])
    return solve(scheduler, target, begin, target_levels[changes:], layout, after=put_back, progress=progress)


def _tokens(levels: Tensor, layout: Packed) -> Tensor:
    """[K+1,R] -> [K+1,T,1]."""
    return levels.index_select(1, layout.frame)[..., None]


def _line(scheduler: LatentVideoScheduler, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x and eps mixed at levels t [T,1], on the straight line."""
    s = scheduler.path.line(t)
    return (1 - s) * x + s * eps


def _velocity(scheduler: LatentVideoScheduler, predict: Predict, y: Tensor, per_frame: Tensor, t: Tensor) -> Tensor:
    """eps - x at y on the straight line, of levels [R] and of its tokens t [T,1]."""
    alpha, sigma = scheduler.path.coefficients(t)
    z = (alpha + sigma) * y
    x, eps = scheduler.recover(z, predict(z, per_frame), t)
    return eps - x
