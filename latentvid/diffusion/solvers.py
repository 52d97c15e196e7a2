"""Solvers: from noise to data over given noise levels, as loops over a denoiser.

Axes: T tokens of a pack, P token features, R latent frames, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from ..errors import UserError
from ..packing import Packed
from .path import RectifiedFlow
from .scheduler import LatentVideoScheduler

Predict = Callable[[Tensor, Tensor], Tensor]  # (z [T,P], noise levels [R]) -> the scheduler's target [T,P]
Noise = Callable[[], Tensor]  # fresh noise [T,P]
After = Callable[[Tensor, Tensor], Tensor]  # (z [T,P], noise levels [R]) -> z


class Solver(Protocol):
    """Made for one run with (scheduler, levels [K+1,R], layout, noise, after)."""

    def step(self, predict: Predict, i: int, z: Tensor) -> Tensor:
        """z at levels[i] -> at levels[i + 1]; frames whose level stays do not move."""


class Euler:
    """The deterministic step of first order: DDIM, and Euler's step of the flow."""

    stochastic = False

    def __init__(
        self, scheduler: LatentVideoScheduler, levels: Tensor, layout: Packed, noise: Noise | None, after: After | None
    ) -> None:
        self.scheduler, self.noise, self.after = scheduler, noise, after
        self.levels = levels.index_select(1, layout.frame)[..., None]  # [K+1,T,1]
        self.per_frame = levels

    def step(self, predict: Predict, i: int, z: Tensor) -> Tensor:
        noise = self.noise() if self.stochastic else None
        return self.scheduler.step(predict(z, self.per_frame[i]), self.levels[i], self.levels[i + 1], z, noise)


class Ancestral(Euler):
    """DDPM's step: the posterior's noise is added."""

    stochastic = True


class Heun(Euler):
    """The trapezoid of second order, two calls a step, of dz/dt = eps - x on the straight line and else of
    d(z / alpha) / d(sigma / alpha) = eps (Karras et al. 2022, algorithm 1, in our z).

    Where that is singular the step is Euler's: the last, to level 0, and off the line a first from alpha < 1e-3, where
    sigma / alpha is so large that few steps would diverge.
    """

    def step(self, predict: Predict, i: int, z: Tensor) -> Tensor:
        t, s = self.levels[i], self.levels[i + 1]
        (alpha, sigma), (alpha_s, sigma_s) = (self.scheduler.path.coefficients(level) for level in (t, s))
        line = isinstance(self.scheduler.path, RectifiedFlow)
        x, eps = self.scheduler.recover(z, predict(z, self.per_frame[i]), t)
        landed = torch.where(s == t, z, alpha_s * x + sigma_s * eps)
        again = (s < t) & (s > 0) & (line | (alpha > 1e-3))
        if not bool(again.any()):
            return landed
        seen = landed if self.after is None else self.after(landed, self.per_frame[i + 1])
        x_s, eps_s = self.scheduler.recover(seen, predict(seen, self.per_frame[i + 1]), s)
        if line:
            bend = (s - t) * ((eps_s - x_s) - (eps - x))
        else:
            bend = (sigma_s - alpha_s / alpha.clamp_min(1e-12) * sigma) * (eps_s - eps)
        return torch.where(again, landed + bend / 2, landed)


class Multistep:
    """A multistep solver of diffusers, on any path and target, each frame over its own levels.

    Their steps hold x between them and depend on sigma / alpha alone. So with c = alpha + sigma every path is a
    straight line to them, z / c = (1 - f) x + f eps with f = sigma / c, and the network predicts x.
    """

    make: Callable[..., DPMSolverMultistepScheduler | UniPCMultistepScheduler]
    options: dict[str, str] = {}
    stochastic = False

    def __init__(
        self, scheduler: LatentVideoScheduler, levels: Tensor, layout: Packed, noise: Noise | None, after: After | None
    ) -> None:
        self.scheduler, self.noise = scheduler, noise
        self.levels = levels.index_select(1, layout.frame)[..., None]  # [K+1,T,1]
        self.per_frame = levels
        columns, group = levels.cpu().unique(dim=1, return_inverse=True)  # [K+1,G], [R]
        group = group.to(levels.device).index_select(0, layout.frame)  # [T]
        self.tracks = [
            (torch.nonzero(group == g)[:, 0], _Track(self, column))
            for g, column in enumerate(columns.unbind(1))
            if column[0] != column[-1]
        ]

    def step(self, predict: Predict, i: int, z: Tensor) -> Tensor:
        x, _ = self.scheduler.recover(z, predict(z, self.per_frame[i]), self.levels[i])
        noise = self.noise() if self.stochastic else None
        moved = z.clone()
        for tokens, track in self.tracks:
            if track.falls[i]:
                drawn = {} if noise is None else {"variance_noise": noise[tokens]}
                moved[tokens] = track.step(i, z[tokens], x[tokens], **drawn)
        return moved


class _Track:
    """One run of a diffusers scheduler: the frames that go through the same levels [K+1], which may pause."""

    def __init__(self, method: Multistep, column: Tensor) -> None:
        alpha, sigma = method.scheduler.path.coefficients(column)
        self.scale = alpha.double() + sigma.double()
        # at noise alone log(alpha) is infinite, which UniPC cannot take: diffusers stops 1e-6 before it too
        fraction = (sigma.double() / self.scale).clamp_max(1 - 1e-6)
        falls = fraction.diff() < 0
        self.falls = falls.tolist()
        fraction = fraction[torch.cat([torch.ones(1, dtype=torch.bool), falls])]
        last = "zero" if fraction[-1] == 0 else "sigma_min"
        self.solver = method.make(
            prediction_type="sample", use_flow_sigmas=True, final_sigmas_type=last, **method.options
        )
        self.solver.sigmas = fraction
        self.solver.timesteps = torch.arange(len(fraction) - 1)
        self.solver.num_inference_steps = len(fraction) - 1
        self.solver.set_begin_index(0)

    def step(self, i: int, z: Tensor, x: Tensor, **drawn: Tensor) -> Tensor:
        scale = self.scale.to(z.device, z.dtype)
        return self.solver.step(x, self.solver.timesteps[0], z / scale[i], **drawn).prev_sample * scale[i + 1]


class DPMSolver(Multistep):
    """DPM-Solver++ 2M (Lu et al. 2022)."""

    make = DPMSolverMultistepScheduler
    options = {"algorithm_type": "dpmsolver++"}


class DPMSolverSDE(Multistep):
    """DPM-Solver++ 2M of the reverse stochastic equation."""

    make = DPMSolverMultistepScheduler
    options = {"algorithm_type": "sde-dpmsolver++"}
    stochastic = True


class UniPC(Multistep):
    """UniPC of order 2 with its corrector (Zhao et al. 2023)."""

    make = UniPCMultistepScheduler


SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": Euler,
    "ddpm": Ancestral,
    "heun": Heun,
    "dpmpp_2m": DPMSolver,
    "dpmpp_2m_sde": DPMSolverSDE,
    "unipc": UniPC,
}


def solve(
    scheduler: LatentVideoScheduler,
    predict: Predict,
    z: Tensor,
    levels: Tensor,
    layout: Packed,
    *,
    solver: str = "euler",
    noise: Noise | None = None,
    after: After | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """z [T,P] at levels[0] -> at levels[K]: levels [K+1,R] fall, or stay where a frame is given.

    noise: makes fresh noise, for the solvers that add some. after: changes the state after each step, by its levels
    [R], such as to put known tokens back. Raises UserError for an unknown solver.
    """
    if solver not in SOLVERS:
        raise UserError(f"solver {solver!r}: one of {', '.join(SOLVERS)}")
    method = SOLVERS[solver](scheduler, levels, layout, noise, after)
    for i in progress(range(len(levels) - 1)):
        z = method.step(predict, i, z)
        if after is not None:
            z = after(z, levels[i + 1])
    return z
