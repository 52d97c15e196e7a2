"""Noise levels for training and for sampling, all in [0,1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def shift(t: Tensor, factor: float) -> Tensor:
    """Moves levels toward noise: t' = a t / (1 + (a - 1) t) (Stable Diffusion 3, Esser et al. 2024, eq. 23)."""
    return factor * t / (1.0 + (factor - 1.0) * t)


@dataclass(frozen=True, kw_only=True)
class TimestepSampling:
    """How a training sample's noise level is drawn.

    uniform: t ~ U(0,1]. logit_normal: t = sigmoid(mean + std n), n ~ N(0,1) (Esser et al. 2024, eq. 19). Then `shift`.
    """

    kind: Literal["uniform", "logit_normal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.shift <= 0 or self.std <= 0:
            raise ValueError(f"shift {self.shift} and std {self.std} must be positive")

    def draw(self, generator: torch.Generator) -> Tensor:
        """One noise level in (0,1], a scalar tensor."""
        if self.kind == "uniform":
            t = 1.0 - torch.rand((), generator=generator)
        else:
            t = torch.sigmoid(self.mean + self.std * torch.randn((), generator=generator))
        return shift(t, self.shift)


def sampling_levels(steps: int, factor: float = 1.0) -> Tensor:
    """Noise levels [steps + 1] from 1 down to 0, evenly spaced ("trailing", Lin et al. 2023), then shifted."""
    if steps < 1:
        raise ValueError(f"{steps} sampling steps: at least 1 is needed")
    return shift(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64), factor).float()
