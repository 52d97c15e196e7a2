"""Noise paths z_t = alpha(t) x + sigma(t) eps over t in [0,1]: t = 0 is clean data, t = 1 the most noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


class Path:
    """What scheduler, solvers and inversion ask of a path."""

    straight = False  # alpha + sigma = 1: a step of a fixed velocity is exact

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at noise levels t (any shape, in [0,1]), float32."""
        raise NotImplementedError

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt); raises ValueError where the path has none."""
        raise NotImplementedError

    def snap(self, t: Tensor) -> Tensor:
        """The nearest noise level that the path has, for training draws and sampling steps."""
        return t

    def at(self, ratio: Tensor) -> Tensor:
        """The level t at which sigma / alpha is this much (any shape, above 0), float32; of more than there is, 1."""
        raise NotImplementedError

    def line(self, t: Tensor) -> Tensor:
        """Where z / (alpha + sigma) at levels t (any shape) lies on the straight line from data, 0, to noise, 1."""
        alpha, sigma = self.coefficients(t)
        return sigma / (alpha + sigma)

    @property
    def deviation(self) -> float:
        """That of the data x which the coefficients are made for: alpha^2 deviation^2 + sigma^2 is the same at all
        levels of a path that keeps the variance."""
        return 1.0

    @property
    def last(self) -> float:
        """The least noise level that a network is told of as it is."""
        return 0.0

    def begin(self, eps: Tensor) -> Tensor:
        """The state z at level 1 where sampling begins: all of it is noise."""
        return eps

    def seen(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What a network reads of states z, and is told of their levels t."""
        return z, t


@dataclass(frozen=True)
class RectifiedFlow(Path):
    """The straight line alpha = 1 - t, sigma = t (Liu et al. 2022; Lipman et al. 2022)."""

    straight = True

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.float()
        return 1.0 - t, t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=torch.float32)
        return -one, one

    def at(self, ratio: Tensor) -> Tensor:
        return (ratio.double() / (1.0 + ratio.double())).float()


@dataclass(frozen=True)
class Cosine(Path):
    """The quarter circle alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Salimans & Ho 2022, section 3): t is an angle.

    The continuous form of Nichol & Dhariwal's cosine schedule; its last level is noise alone.
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = t.double() * (math.pi / 2)
        alpha = torch.where(t >= 1, torch.zeros_like(angle), angle.cos())  # cos(pi/2) is 6e-17 in floating point
        return alpha.float(), angle.sin().float()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.coefficients(t)
        return -sigma * (math.pi / 2), alpha * (math.pi / 2)

    def at(self, ratio: Tensor) -> Tensor:
        return (ratio.double().atan() * (2 / math.pi)).float()


@dataclass(frozen=True)
class EDM(Path):
    """The path of "Elucidating the Design Space of Diffusion-Based Generative Models" (EDM, Karras et al. 2022):
    z = s (x + noise n) with s = data / sqrt(noise^2 + data^2), so that z is as large as the data at every level.

    Their sigma is `noise` here: noise(t) = sigma_max t^rho, from 0 at t = 0, so that even levels t are their schedule
    (eq. 5). `data`, sigma_data, is the deviation of x. Their c_in (x + noise n), which the network reads, is z / data.
    `sigma_min` is the last noise of the schedule, and the least that the network is told.
    """

    sigma_data: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} and sigma_max {self.sigma_max}: give 0 < min < max")

    def noise(self, t: Tensor) -> Tensor:
        """The paper's sigma at levels t, float64."""
        return self.sigma_max * t.double() ** self.rho

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        noise = self.noise(t)
        scale = self.sigma_data / (noise.square() + self.sigma_data**2).sqrt()
        return scale.float(), (scale * noise).float()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError("the flow target is of paths rectified_flow and cosine: with path edm use target edm, v or x")

    def at(self, ratio: Tensor) -> Tensor:
        return (ratio.double() / self.sigma_max).clamp_max(1.0).pow(1 / self.rho).float()

    @property
    def deviation(self) -> float:
        return self.sigma_data

    def begin(self, eps: Tensor) -> Tensor:
        """sigma eps, of the size of the data."""
        return eps * self.coefficients(torch.ones(()))[1]

    def seen(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_in (x + noise n) and c_noise (eq. 7)."""
        return z / self.sigma_data, self.c_noise(t)

    def c_noise(self, t: Tensor) -> Tensor:
        """What the network is told of levels t: log(noise) / 4 (table 1), of no less noise than `sigma_min`."""
        return (self.noise(t).clamp_min(self.sigma_min).log() / 4).float()

    @property
    def last(self) -> float:
        """The level of `sigma_min`."""
        return (self.sigma_min / self.sigma_max) ** (1 / self.rho)


BETAS = ("linear", "scaled_linear", "logarithmic", "uniform", "cosine")


def betas(kind: str, start: float, end: float, steps: int) -> Tensor:
    """Variances beta_1 .. beta_T, float64, of a discrete variance-preserving path.

    linear: evenly spaced (Ho et al. 2020). scaled_linear: their roots are (Rombach et al. 2022). logarithmic: their
    logarithms are. uniform: beta_t = t / T, of which the last level is noise alone. cosine: from alpha^2 =
    cos^2((t/T + 0.008) / 1.008 * pi/2), at most 0.999 (Nichol & Dhariwal 2021, eq. 17). Only the first three use
    `start` and `end`.
    """
    if kind == "uniform":
        return torch.arange(1, steps + 1, dtype=torch.float64) / steps
    if kind == "cosine":
        square = (((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008) * (math.pi / 2)).cos() ** 2
        return (1 - square[1:] / square[:-1]).clamp_max(0.999)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if kind == "logarithmic":
        return torch.linspace(math.log(start), math.log(end), steps, dtype=torch.float64).exp()
    return torch.linspace(start, end, steps, dtype=torch.float64)


@dataclass(frozen=True)
class DDPM(Path):
    """The discrete variance-preserving path of DDPM (Ho et al. 2020, eq. 4) with T noise levels t = i / T.

    Level i in 1..T has alpha^2 = prod_{j<=i} (1 - beta_j); level 0 is clean. DDPM's own step number is i - 1.
    `snr_shift_scale` divides the signal-to-noise ratio alpha^2 / sigma^2 of all levels by so much (simple diffusion,
    Hoogeboom et al. 2023; CogVideoX, Yang et al. 2024). With `zero_terminal_snr` alpha then is shifted and stretched so
    that level T is noise alone while level 1 stays (Lin et al. 2023, algorithm 1).
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    steps: int = 1000
    betas: str = "linear"
    zero_terminal_snr: bool = False
    snr_shift_scale: float = 1.0
    alphas_cumprod: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.betas not in BETAS:
            raise ValueError(f"betas {self.betas!r}: one of {', '.join(BETAS)}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"beta_start {self.beta_start} and beta_end {self.beta_end}: give 0 < start <= end < 1")
        if not self.snr_shift_scale > 0:
            raise ValueError(f"snr_shift_scale {self.snr_shift_scale}: give a number above 0; 1 changes nothing")
        cumprod = torch.cumprod(1.0 - betas(self.betas, self.beta_start, self.beta_end, self.steps), 0)
        if self.snr_shift_scale != 1.0:
            cumprod = cumprod / (self.snr_shift_scale + (1.0 - self.snr_shift_scale) * cumprod)
        if self.zero_terminal_snr:
            alpha = cumprod.sqrt()
            cumprod = ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2
        object.__setattr__(self, "alphas_cumprod", torch.cat([torch.ones(1, dtype=torch.float64), cumprod]))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        level = (t.double() * self.steps).round().long()
        square = self.alphas_cumprod.to(t.device, non_blocking=True)[level]
        return square.sqrt().float(), (1.0 - square).sqrt().float()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError(
            "the flow target needs a differentiable path: use path rectified_flow or cosine, or target v, eps or x"
        )

    def snap(self, t: Tensor) -> Tensor:
        return ((t.double() * self.steps).round().clamp(1, self.steps) / self.steps).to(t.dtype)

    def at(self, ratio: Tensor) -> Tensor:
        """Of the levels that the path has, the nearest in log(sigma / alpha)."""
        square = self.alphas_cumprod[1:]
        have = ((1 - square) / square.clamp_min(1e-30)).log().to(ratio.device, non_blocking=True) / 2
        place = ratio.double().log()
        above = torch.searchsorted(have, place).clamp(1, self.steps - 1)
        nearer = place - have[above - 1] < have[above] - place
        return ((above + 1 - nearer.long()).double() / self.steps).float()


def log_snr(path: Path, t: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2) at levels t: from infinity at t = 0 down, to minus infinity where all is noise."""
    alpha, sigma = path.coefficients(t)
    return 2 * (alpha.log() - sigma.log())


PATHS = ("rectified_flow", "cosine", "ddpm", "edm")
