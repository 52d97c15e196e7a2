"""Solvers: from noise to data over given noise levels, as loops over a denoiser.

Axes: T tokens of a pack, P token features, R latent frames, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import UserError
from ..packing import Packed
from .scheduler import LatentVideoScheduler

Predict = Callable[[Tensor, Tensor], Tensor]  # (z [T,P], noise levels [R]) -> the scheduler's target [T,P]
Noise = Callable[[], Tensor]  # fresh noise [T,P]
After = Callable[[Tensor, Tensor], Tensor]  # (z [T,P], noise levels [R]) -> z
OnStep = Callable[[int, Tensor], Tensor | None]  # (step from 0, z [T,P]) -> z, or None: the run ends here


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

    def __init__(
        self, scheduler: LatentVideoScheduler, levels: Tensor, layout: Packed, noise: Noise | None, after: After | None
    ) -> None:
        super().__init__(scheduler, levels, layout, noise, after)
        alpha, _ = scheduler.path.coefficients(levels[:-1])  # [K,R]
        found = self._second(alpha, levels[:-1], levels[1:]).any(1)
        self.second = found.cpu().tolist()  # of each step, whether it is such

    def _second(self, alpha: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (s < t) & (s > 0) & (self.scheduler.path.straight | (alpha > 1e-3))

    def step(self, predict: Predict, i: int, z: Tensor) -> Tensor:
        t, s = self.levels[i], self.levels[i + 1]
        (alpha, sigma), (alpha_s, sigma_s) = (self.scheduler.path.coefficients(level) for level in (t, s))
        line = self.scheduler.path.straight
        x, eps = self.scheduler.recover(z, predict(z, self.per_frame[i]), t)
        landed = torch.where(s == t, z, alpha_s * x + sigma_s * eps)
        if not self.second[i]:
            return landed
        again = self._second(alpha, t, s)
        seen = landed if self.after is None else self.after(landed, self.per_frame[i + 1])
        x_s, eps_s = self.scheduler.recover(seen, predict(seen, self.per_frame[i + 1]), s)
        if line:
            bend = (s - t) * ((eps_s - x_s) - (eps - x))
        else:
            bend = (sigma_s - alpha_s / alpha.clamp_min(1e-12) * sigma) * (eps_s - eps)
        return torch.where(again, landed + bend / 2, landed)


class Seen(NamedTuple):
    """What a step began with, of each token: its level (alpha, sigma and lambda = log(alpha / sigma)), z, and x."""

    alpha: Tensor  # [T,1], like the next two in float64
    sigma: Tensor
    lam: Tensor
    z: Tensor  # [T,P]
    x: Tensor


class DPMSolver(Euler):
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): second order, with the x of the step before.

    A frame whose level stays is skipped: its next step goes on from the last one that moved it. Of first order are a
    frame's first step and, as in diffusers, its last one if that ends in clean data or the frame has few steps.
    """

    few = 15.0  # steps: a shorter run ends in a step of first order, which is steadier
    # lambda of noise alone is -infinity, which second order cannot take: diffusers stops before it too
    least = 1e-6  # of alpha / sigma

    def __init__(
        self, scheduler: LatentVideoScheduler, levels: Tensor, layout: Packed, noise: Noise | None, after: After | None
    ) -> None:
        super().__init__(scheduler, levels, layout, noise, after)
        self.frame = layout.frame
        self.alpha, self.sigma = (part.double() for part in scheduler.path.coefficients(levels))  # [K+1,R]
        self.lam = (self.alpha / self.sigma).clamp_min(self.least).log()
        self.falls = self.lam.diff(dim=0) > 0  # [K,R]: which frames a step moves
        self.number = self.falls.cumsum(0)  # [K,R]: of a step among those that move the frame, from 1
        count = self.number[-1]
        last_is_first_order = (self.sigma[-1] == 0) | (count < self.few)
        self.second_order = (self.number > 1) & ~((self.number == count) & last_is_first_order)
        self.before: Seen | None = None  # of the last step that moved a token
        self.before_that: Seen | None = None

    def step(self, predict: Predict, i: int, z: Tensor) -> Tensor:
        t, alpha, sigma, lam = self.see(predict, i, z), *self.level(i + 1)
        u = self.before or t
        # D = x_t + (x_t - x_u) / 2r, with r = (lambda_t - lambda_u) / h and h = lambda_s - lambda_t
        bend = ((lam - t.lam) / (t.lam - u.lam) / 2).to(z.dtype) * (t.x - u.x)
        moved = self.advance(t, alpha, sigma, lam, t.x + torch.where(self.tokens(self.second_order[i]), bend, 0.0))
        falls = self.tokens(self.falls[i])
        self.before, self.before_that = _where(falls, t, u), _where(falls, u, self.before_that or t)
        return torch.where(falls, moved, z)

    def see(self, predict: Predict, i: int, z: Tensor) -> Seen:
        x, _ = self.scheduler.recover(z, predict(z, self.per_frame[i]), self.levels[i])
        return Seen(*self.level(i), z, x)

    def level(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and lambda of the tokens at levels[i]."""
        return self.tokens(self.alpha[i]), self.tokens(self.sigma[i]), self.tokens(self.lam[i])

    def tokens(self, frames: Tensor) -> Tensor:  # [R] -> [T,1]
        return frames.index_select(0, self.frame)[:, None]

    def advance(self, t: Seen, alpha: Tensor, sigma: Tensor, lam: Tensor, x: Tensor) -> Tensor:
        """z at level s, exact if x stays what it is: sigma_s / sigma_t z - alpha_s (e^-h - 1) x (proposition 4.1)."""
        h = lam - t.lam
        return (sigma / t.sigma).to(x.dtype) * t.z - (alpha * torch.expm1(-h)).to(x.dtype) * x


class DPMSolverSDE(DPMSolver):
    """The same of the reverse stochastic equation: SDE-DPM-Solver++ 2M (Lu et al. 2022)."""

    stochastic = True

    def advance(self, t: Seen, alpha: Tensor, sigma: Tensor, lam: Tensor, x: Tensor) -> Tensor:
        """sigma_s / sigma_t e^-h z + alpha_s (1 - e^-2h) x + sigma_s sqrt(1 - e^-2h) noise."""
        h = lam - t.lam
        fresh = -torch.expm1(-2 * h)
        kept = (sigma / t.sigma * torch.exp(-h)).to(x.dtype) * t.z + (alpha * fresh).to(x.dtype) * x
        return kept + (sigma * fresh.sqrt()).to(x.dtype) * self.noise()


class CogVideoXDPM(DPMSolverSDE):
    """The same as CogVideoX's scheduler has it: of a step from noise alone the next one takes nothing, so that it is of
    first order too (diffusers/schedulers/scheduling_dpm_cogvideox.py)."""

    least = 0.0


class UniPC(DPMSolver):
    """UniPC of order 2 (Zhao et al. 2023, algorithms 1 and 2), predicting x, with B(h) = e^-h - 1.

    Its predictor is then the step of DPM-Solver++ 2M. Its corrector makes the step before once more, with what the
    network now says at the end of it: x = x_u + rho_1 (x_v - x_u) / r + rho_2 (x_t - x_u), for v before u before t.
    """

    few = math.inf

    def see(self, predict: Predict, i: int, z: Tensor) -> Seen:
        t, u, v = super().see(predict, i, z), self.before, self.before_that
        if u is None or v is None:
            return t
        h = t.lam - u.lam
        r, b = (v.lam - u.lam) / h, torch.expm1(-h)
        # rho_1 + rho_2 = g_1 and r rho_1 + rho_2 = g_2 (theorem 3.1); at first order rho_2 = 1/2 alone
        phi = b / -h - 1
        g_1, g_2 = phi / b, 2 * (phi / -h - 0.5) / b
        second = self.tokens(self.number[i] > 2)
        rho_1 = (g_1 - g_2) / (1 - r)
        rho_2 = torch.where(second, g_1 - rho_1, 0.5)
        bend = torch.where(second, (rho_1 / r).to(z.dtype) * (v.x - u.x), 0.0)
        corrected = self.advance(u, t.alpha, t.sigma, t.lam, u.x + bend + rho_2.to(z.dtype) * (t.x - u.x))
        return t._replace(z=torch.where(self.tokens(self.falls[i] & (self.number[i] > 1)), corrected, z))


def _where(here: Tensor, a: Seen, b: Seen) -> Seen:
    return Seen(*(torch.where(here, x, y) for x, y in zip(a, b, strict=True)))


SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": Euler,
    "ddpm": Ancestral,
    "heun": Heun,
    "dpmpp_2m": DPMSolver,
    "dpmpp_2m_sde": DPMSolverSDE,
    "cogvideox_dpm": CogVideoXDPM,
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
    on_step: OnStep | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """z [T,P] at levels[0] -> at levels[K]: levels [K+1,R] fall, or stay where a frame is given.

    noise: makes fresh noise, for the solvers that add some. after: changes the state after each step, by its levels
    [R], such as to put known tokens back. on_step: sees it at the end of each step, and may change it or end the run.
    Raises UserError for an unknown solver.
    """
    if solver not in SOLVERS:
        raise UserError(f"solver {solver!r}: one of {', '.join(SOLVERS)}")
    method = SOLVERS[solver](scheduler, levels, layout, noise, after)
    for i in progress(range(len(levels) - 1)):
        z = method.step(predict, i, z)
        if after is not None:
            z = after(z, levels[i + 1])
        if on_step is not None:
            if (changed := on_step(i, z)) is None:
                break
            z = changed
    return z
