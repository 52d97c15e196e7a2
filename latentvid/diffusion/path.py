"""Noise paths z_t = alpha(t) x + sigma(t) eps over t in [0,1]: t = 0 is clean data, t = 1 the most noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Path(Protocol):
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at noise levels t (any shape, in [0,1]), float32."""

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt); raises ValueError where the path has none."""

    def snap(self, t: Tensor) -> Tensor:
        """The nearest noise level that the path has, for training draws and sampling steps."""


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight line alpha = 1 - t, sigma = t (Liu et al. 2022; Lipman et al. 2022)."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.float()
        return 1.0 - t, t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=torch.float32)
        return -one, one

    def snap(self, t: Tensor) -> Tensor:
        return t


@dataclass(frozen=True)
class DDPM:
    """The discrete variance-preserving path of DDPM (Ho et al. 2020, eq. 4) with T noise levels t = i / T.

    Level i in 1..T has alpha^2 = prod_{j<=i} (1 - beta_j); level 0 is clean. DDPM's own step number is i - 1.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    steps: int = 1000
    alphas_cumprod: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        betas = torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        cumprod = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1.0 - betas, 0)])
        object.__setattr__(self, "alphas_cumprod", cumprod)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        level = (t.double() * self.steps).round().long()
        square = self.alphas_cumprod.to(t.device)[level]
        return square.sqrt().float(), (1.0 - square).sqrt().float()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError("the flow target needs a differentiable path: use path rectified_flow, or target v, eps or x")

    def snap(self, t: Tensor) -> Tensor:
        return ((t.double() * self.steps).round().clamp(1, self.steps) / self.steps).to(t.dtype)


PATHS = ("rectified_flow", "ddpm")
