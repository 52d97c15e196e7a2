"""The one scheduler: DDPM and rectified flow, deterministic or ancestral, as a single step.

Axes: T tokens, P token features; noise levels are given per token as [T,1] (or any shape that broadcasts).
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .objective import TARGETS, recover, target_coefficients
from .path import DDPM, PATHS, RectifiedFlow
from .timesteps import sampling_levels


class LatentVideoScheduler(SchedulerMixin, ConfigMixin):
    """Path, target and step; its config travels with the model, so that trainer and pipeline agree.

    Args:
        path: "rectified_flow" or "ddpm".
        target: what the network predicts: "flow", "v", "eps" or "x".
        beta_start, beta_end, num_train_timesteps: the DDPM path's linear betas.
        shift: shift of the sampling levels toward noise; 1 is none.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        path: str = "rectified_flow",
        target: str = "flow",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
    ) -> None:
        if path not in PATHS:
            raise ValueError(f"path {path!r}: one of {', '.join(PATHS)}")
        if target not in TARGETS:
            raise ValueError(f"target {target!r}: one of {', '.join(TARGETS)}")
        if path == "ddpm" and target == "flow":
            raise ValueError("target 'flow' needs path 'rectified_flow': with path 'ddpm' use v, eps or x")
        if path == "rectified_flow" and target == "eps":
            raise ValueError("target 'eps' leaves x unknown at t = 1 of path 'rectified_flow': use flow, v or x")
        self.path = RectifiedFlow() if path == "rectified_flow" else DDPM(beta_start, beta_end, num_train_timesteps)

    def mix(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = alpha x + sigma eps."""
        alpha, sigma = self.path.coefficients(t)
        return alpha * x + sigma * eps

    def target(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should predict, p x + q eps."""
        p, q = target_coefficients(self.config.target, self.path, t)
        return p * x + q * eps

    def recover(self, z: Tensor, prediction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x, eps) from z_t and the network's prediction."""
        return recover(z, prediction, self.config.target, self.path, t)

    def levels(self, steps: int) -> Tensor:
        """Noise levels [steps + 1] of a sampling run, from 1 down to 0."""
        t = sampling_levels(steps, self.config.shift)
        t[:-1] = self.path.snap(t[:-1])
        return t

    def step(self, prediction: Tensor, t: Tensor, s: Tensor, z: Tensor, noise: Tensor | None = None, eta: float = 1.0):
        """From z at level t to level s < t: alpha_s x + sqrt(sigma_s^2 - u^2) eps + u noise.

        Without noise u = 0: DDIM (Song et al. 2020, eq. 12) and Euler's step of the flow. With noise and eta = 1, u is
        the posterior's deviation: DDPM's ancestral step (Ho et al. 2020, eq. 6 and 7). Rows with s = t do not move.
        """
        x, eps = self.recover(z, prediction, t)
        alpha_t, sigma_t = self.path.coefficients(t)
        alpha_s, sigma_s = self.path.coefficients(s)
        if noise is None:
            return torch.where(s == t, z, alpha_s * x + sigma_s * eps)
        ratio = sigma_s / sigma_t.clamp_min(1e-12)
        forward = (sigma_t**2 - (alpha_t / alpha_s.clamp_min(1e-12) * sigma_s) ** 2).clamp_min(0.0)  # of z_t given z_s
        variance = (eta * ratio) ** 2 * forward
        keep = (sigma_s**2 - variance).clamp_min(0.0).sqrt()
        return torch.where(s == t, z, alpha_s * x + keep * eps + variance.sqrt() * noise)
