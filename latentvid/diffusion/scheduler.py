"""The one scheduler: every path and target, and the single step between two noise levels.

Axes: T tokens, P token features; noise levels are given per token as [T,1] (or any shape that broadcasts).
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .objective import TARGETS, recover, target_coefficients
from .path import DDPM, EDM, PATHS, Cosine, Path, RectifiedFlow
from .timesteps import SPACINGS, check_shift, sampling_levels, shift_for


class LatentVideoScheduler(SchedulerMixin, ConfigMixin):
    """Path, target and step; its config travels with the model, so that trainer and pipeline agree.

    Args:
        path: "rectified_flow", "cosine", "ddpm" or "edm".
        target: what the network predicts: "flow", "v", "eps", "x", or "edm" of that path.
        betas, beta_start, beta_end, num_train_timesteps: of the DDPM path (`path.betas`).
        zero_terminal_snr: the last level of the DDPM path is noise alone; that of the others always is.
        snr_shift_scale: divides the signal-to-noise ratio of the DDPM path; 1 leaves it as it is.
        shift: moves the sampling levels toward noise; 1 leaves them as they are.
        base_tokens: if set, the shift grows with the square root of a clip's tokens, and is `shift` at this number.
        log_shift, shift_tokens: if set, the logarithm of the shift lies on the line through two values, at two numbers
            of tokens (`timesteps.shift_for`).
        spacing, lowest, terminal: of the sampling levels (`timesteps.SPACINGS`, `timesteps.sampling_levels`).
        whole_steps: while sampling the network is told levels rounded down to one of so many, as by diffusers' UniPC.
        sigma_data, sigma_min, sigma_max, rho: of the EDM path: deviation of what is diffused (latents are normalised to
            1), least and most noise, and how the sampling levels gather at the least (`path.EDM`). With spacing
            "karras" the last step begins at sigma_min (Karras et al. 2022, eq. 5).
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
        betas: str = "linear",
        zero_terminal_snr: bool = False,
        base_tokens: int | None = None,
        snr_shift_scale: float = 1.0,
        spacing: str = "even",
        log_shift: list[float] | tuple[float, ...] | None = None,
        shift_tokens: list[int] | tuple[int, ...] | None = None,
        lowest: float = 0.0,
        terminal: float | None = None,
        whole_steps: int | None = None,
        sigma_data: float = 1.0,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> None:
        if path not in PATHS:
            raise ValueError(f"path {path!r}: one of {', '.join(PATHS)}")
        if spacing not in SPACINGS:
            raise ValueError(f"spacing {spacing!r}: one of {', '.join(SPACINGS)}")
        check_shift(base_tokens, log_shift, shift_tokens)
        if target not in TARGETS:
            raise ValueError(f"target {target!r}: one of {', '.join(TARGETS)}")
        if path == "ddpm" and target == "flow":
            raise ValueError("target 'flow' needs path 'rectified_flow' or 'cosine': with path 'ddpm' use v, eps or x")
        if path == "edm" and target == "flow":
            raise ValueError(
                "target 'flow' needs path 'rectified_flow' or 'cosine': with path 'edm' use edm, v, eps or x"
            )
        for name, value in (("target", target), ("spacing", spacing)):
            if path != "edm" and value in ("edm", "karras"):
                raise ValueError(
                    f"{name} {value!r} needs path 'edm', and path is {path!r}: set that, or another {name}"
                )
        if spacing == "karras" and (lowest or terminal is not None):
            raise ValueError("spacing 'karras' ends at sigma_min: leave lowest and terminal out")
        if path == "edm" and whole_steps is not None:
            raise ValueError("whole_steps is of levels from 0 to 1, and path 'edm' tells the network log(noise) / 4")
        if path == "ddpm":
            of_betas = betas, zero_terminal_snr, snr_shift_scale
            self.path: Path = DDPM(beta_start, beta_end, num_train_timesteps, *of_betas)
        elif path == "edm":
            self.path = EDM(sigma_data, sigma_min, sigma_max, rho)
        else:
            self.path = RectifiedFlow() if path == "rectified_flow" else Cosine()
        if target == "eps" and self.path.coefficients(torch.ones(()))[0] == 0:
            use = "flow, v or x" if path != "ddpm" else "v or x, or betas that leave some signal"
            raise ValueError(
                f"target 'eps' leaves x unknown at t = 1 of path {path!r}, which is noise alone: use {use}"
            )

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

    def levels(self, steps: int, tokens: int | None = None, start: float = 1.0) -> Tensor:
        """Noise levels [steps + 1] of a sampling run of a clip with `tokens` tokens, from `start` down to 0."""
        c = self.config
        factor = shift_for(c.shift, tokens, c.base_tokens, c.log_shift, c.shift_tokens)
        lowest = self.path.last if c.spacing == "karras" else c.lowest
        t = start * sampling_levels(steps, factor, c.spacing, lowest, c.terminal)
        t[:-1] = self.path.snap(t[:-1])
        return t

    def begin(self, eps: Tensor) -> Tensor:
        """The state z at level 1 of which all is noise."""
        return self.path.begin(eps)

    def inputs(self, z: Tensor, t: Tensor, sampling: bool = True) -> tuple[Tensor, Tensor]:
        """What a network reads of states z, and is told of their levels t of any shape (`Path.seen`), which in sampling
        are rounded as `told` says."""
        return self.path.seen(z, self.told(t) if sampling else t)

    def told(self, t: Tensor) -> Tensor:
        """Sampling levels t of any shape, rounded as a network is told them."""
        whole = self.config.whole_steps
        if whole is None:
            return t
        # 1e-4: float32 may stand just below a whole number; level 1 is told as the one below it
        return ((whole * t.double() + 1e-4).floor().clamp_max(whole - 1) / whole).to(t.dtype)

    def step(self, prediction: Tensor, t: Tensor, s: Tensor, z: Tensor, noise: Tensor | None = None, eta: float = 1.0):
        """From z at level t to level s < t: alpha_s x + sqrt(sigma_s^2 - u^2) eps + u noise.

        Without noise u = 0: DDIM (Song et al. 2020, eq. 12) and Euler's step of the flow. With noise and eta = 1, u is
        the posterior's deviation: DDPM's ancestral step (Ho et al. 2020, eq. 6 and 7). Frames with s = t do not move.
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
