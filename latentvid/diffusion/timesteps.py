"""Noise levels for training and for sampling, all in [0,1].

torch is imported where it is used: a configuration, and its help, do without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import UserError
from ..limits import check_fields, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .path import Path

PERCENTILES = (-2.5758, 3.0902)  # of a normal variable: 0.5 and 99.9, which `stretch` moves to 0 and 1
LEAST = 1e-3  # level drawn with `stretch`, or with a share that is uniform
DRAWS = 1000  # at most, of a level within [low, high]


def shift(t: Tensor, factor: float) -> Tensor:
    """Moves levels toward noise: t' = a t / (1 + (a - 1) t) (Stable Diffusion 3, Esser et al. 2024, eq. 23)."""
    return factor * t / (1.0 + (factor - 1.0) * t)


Pair = Sequence[float]  # two numbers


def shift_for(
    factor: float,
    tokens: int | None,
    base_tokens: int | None,
    log_shift: Pair | None = None,
    shift_tokens: Pair | None = None,
) -> float:
    """The shift by a sample's tokens: factor * sqrt(tokens / base_tokens) (Esser et al. 2024, section 5.3.2).

    More tokens of a like picture hide it less under the same noise. Without `base_tokens`, `factor` for all.
    With `log_shift` its logarithm lies on the line through these two values at `shift_tokens` (LTX-Video, HaCohen et
    al. 2024; Flux's `calculate_shift` in diffusers), times `factor`.
    """
    if tokens is not None and log_shift is not None:
        (low, high), (few, many) = log_shift, shift_tokens
        return factor * math.exp(low + (high - low) * (tokens - few) / (many - few))
    return factor if base_tokens is None or tokens is None else factor * math.sqrt(tokens / base_tokens)


def check_shift(base_tokens: int | None, log_shift: Pair | None, shift_tokens: Pair | None) -> None:
    """Raises ValueError where two rules say how the shift grows with the tokens, or one is half said."""
    pairs = log_shift, shift_tokens
    if any(pairs) and not all(pair is not None and len(pair) == 2 for pair in pairs):
        raise ValueError("log_shift and shift_tokens belong together: give two values of each")
    if log_shift is not None and base_tokens is not None:
        raise ValueError("base_tokens and log_shift both say how the shift grows with the tokens: give one of them")
    if shift_tokens is not None and shift_tokens[0] >= shift_tokens[1]:
        raise ValueError(f"shift_tokens {tuple(shift_tokens)}: the first number of tokens must be below the second")


@dataclass(frozen=True, kw_only=True)
class TimestepSampling:
    """How a training sample's noise level is drawn.

    uniform: t ~ U(0,1]. logit_normal: t = sigmoid(mean + std n), n ~ N(0,1) (Esser et al. 2024, eq. 19).
    log_normal: log(sigma / alpha) = mean + std n (Karras et al. 2022, table 1, have mean -1.2 and std 1.2), of whatever
    path; of rectified_flow that is logit_normal.
    mode: t = 1 - u - scale (cos^2(pi u / 2) - 1 + u), u ~ U(0,1] (eq. 20), scale in [-1, 2 / (pi - 2)].
    Then `shift`. If `base_tokens` is set, it grows with the square root of a sample's tokens, and is `shift`
    at that number. With `log_shift` its log grows on a line between two numbers of tokens (`shift_for`), and no more
    above the second; of logit_normal draws that is their mean.
    Then `stretch`, and a share `uniform` of the draws is uniform instead (LTX-2's trainer, timestep_samplers.py).
    Levels out of [low, high] are drawn again.
    """

    kind: Literal["uniform", "logit_normal", "log_normal", "mode"] = setting(
        "how noise levels are drawn", default="uniform"
    )
    mean: float = setting(
        "logit_normal: mean of the logit, log_normal: of log(sigma / alpha); above 0 draws more noise", default=0.0
    )
    std: float = setting("logit_normal and log_normal: deviation of the same", default=1.0)
    scale: float = setting("mode: how far draws gather in the middle", default=1.29)
    shift: float = setting("then moves the levels toward noise; 1 leaves them as they are", default=1.0)
    base_tokens: int | None = setting("tokens that `shift` is for; it grows with their square root", default=None)
    log_shift: tuple[float, float] | None = setting(
        "log of a factor of `shift` at the two numbers of `shift_tokens`, and on a line between them", default=None
    )
    shift_tokens: tuple[int, int] | None = setting("numbers of tokens that `log_shift` is for", default=None)
    stretch: bool = setting(
        "logit_normal: the levels are stretched so that their percentiles 0.5 and 99.9 are 0 and 1", default=False
    )
    uniform: float = setting("share of the draws that are uniform instead", default=0.0)
    low: float = setting("lowest level that is trained, of a model for a part of them", default=0.0)
    high: float = setting("highest level that is trained", default=1.0)

    def __post_init__(self) -> None:
        check_fields(self, "timesteps")
        check_shift(self.base_tokens, self.log_shift, self.shift_tokens)
        if self.stretch and self.kind != "logit_normal":
            raise ValueError(f"stretch is for kind logit_normal, and kind is {self.kind}: set that, or no stretch")
        if self.low >= self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")

    def draw(
        self, generator: torch.Generator, tokens: int | None = None, count: int = 1, path: Path | None = None
    ) -> Tensor:
        """Noise levels in (0,1] [count] for a sample with `tokens` tokens. path: which log_normal needs."""
        import torch

        t = self._draw(generator, tokens, count, path)
        for _ in range(DRAWS):
            outside = (t < self.low) | (t > self.high)
            if not outside.any():
                return t
            t = torch.where(outside, self._draw(generator, tokens, count, path), t)
        return t.clamp(max(self.low, 1e-6), self.high)  # a part that is next to never drawn

    def _draw(self, generator: torch.Generator, tokens: int | None, count: int, path: Path | None) -> Tensor:
        import torch

        if self.kind == "log_normal":
            t = path.at((self.mean + self.std * torch.randn(count, generator=generator)).exp()).clamp_min(1e-6)
        elif self.kind == "logit_normal":
            t = torch.sigmoid(self.mean + self.std * torch.randn(count, generator=generator))
        else:
            t = 1.0 - torch.rand(count, generator=generator)
        if self.kind == "mode":
            t = 1.0 - t - self.scale * ((math.pi / 2 * t).cos() ** 2 - 1.0 + t)
            t = t.clamp(1e-6, 1.0)  # rounding may reach 0, which means a given frame
        factor = self._factor(tokens)
        t = shift(t, factor)
        if self.stretch:
            ends = self.mean + self.std * torch.tensor(PERCENTILES, dtype=torch.float64)
            low, high = shift(torch.sigmoid(ends), factor)
            t = ((t.double() - low) / (high - low)).float()
            t = torch.where(t < LEAST, 2.0 * LEAST - t, t).clamp_max(1.0)
        if self.uniform:
            even = 1.0 - (1.0 - LEAST) * torch.rand(count, generator=generator)
            t = torch.where(torch.rand(count, generator=generator) < self.uniform, even, t)
        return t

    def _factor(self, tokens: int | None) -> float:
        if self.log_shift is not None and tokens is not None:
            tokens = min(tokens, self.shift_tokens[1])
        return shift_for(self.shift, tokens, self.base_tokens, self.log_shift, self.shift_tokens)


def _even(steps: int, lowest: float) -> Tensor:
    """At one distance, as if the last step led to `lowest` ("trailing", Lin et al. 2023, where that is 0)."""
    import torch

    return torch.linspace(1.0, lowest, steps + 1, dtype=torch.float64)[:-1]


def _points(steps: int, lowest: float) -> Tensor:
    """At one distance; the last step begins at `lowest`."""
    import torch

    return torch.linspace(1.0, lowest, steps, dtype=torch.float64)


def _leading(steps: int, lowest: float) -> Tensor:
    """From `lowest` up, at a distance of whole steps of 1000 (of DDPM: Song et al. 2020; diffusers' "leading")."""
    import torch

    if steps > 1000:
        raise UserError(f"steps={steps}: this model's noise has 1,000 levels: give at most so many")
    return lowest + torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (1000 // steps) / 1000


def _linear_quadratic(steps: int, lowest: float, slow: float = 0.025) -> Tensor:
    """Half of the steps go down by `slow` alone, evenly; the others go on at that rate and ever faster, on a parabola
    that ends in 0 (Mochi 1, Genmo 2024)."""
    import torch

    first = steps // 2
    if not first:
        return _even(steps, 0.0)
    i, rest, rate = torch.arange(steps, dtype=torch.float64), steps - first, slow / first
    beyond = (i - first).clamp_min(0)
    return 1.0 - rate * i - (1.0 - rate * steps) * (beyond / rest) ** 2


# where the steps begin; "karras" is "points" down to the path's own last level
SPACINGS = {
    "even": _even,
    "leading": _leading,
    "points": _points,
    "linear_quadratic": _linear_quadratic,
    "karras": _points,
}


def sampling_levels(
    steps: int, factor: float = 1.0, spacing: str = "even", lowest: float = 0.0, terminal: float | None = None
) -> Tensor:
    """Noise levels [steps + 1] from 1 down to 0, spaced as asked for, then shifted.

    terminal: the level at which the last step begins, to which all are then stretched from 1 (LTX-Video's sampler).
    """
    import torch

    if steps < 1:
        raise ValueError(f"{steps} sampling steps: at least 1 is needed")
    t = shift(SPACINGS[spacing](steps, lowest), factor)
    if terminal is not None and steps > 1:
        t = 1.0 - (1.0 - t) * ((1.0 - terminal) / (1.0 - t[-1]))
    return torch.cat([t, t.new_zeros(1)]).float()
