"""Guidance of the network's prediction while sampling.

Axes: T tokens of a pack, P token features, R latent frames, N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..limits import check_values
from ..packing import Packed
from .scheduler import LatentVideoScheduler
from .solvers import Predict


def classifier_free(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """u + scale (c - u) (Ho & Salimans 2022, eq. 6 with scale = 1 + w); 1 turns guidance off."""
    return unconditional + scale * (conditional - unconditional)


def guided_at(t: Tensor, interval: tuple[float, float] | None) -> Tensor:
    """Whether a noise level is guided, bool of t's shape: within the interval, both ends included, and not given."""
    low, high = interval or (0.0, 1.0)
    return (t > 0) & (t >= low) & (t <= high)


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How the conditional prediction is steered away from that of the negative prompt.

    scale: classifier-free guidance; 1 turns it off, which halves the work.
    rescale: 0 to 1, how far each clip's guided prediction gets the deviation of the conditional one back (Lin et al.
        2023, eq. 15 and 16): against the washed-out look of large scales.
    first: the scale of a clip's first latent frame, from which it grows evenly to `scale` of the last (Stable Video
        Diffusion, Blattmann et al. 2023); None: all have the same.
    interval: guidance only at noise levels from low to high (Kynkäänniemi et al. 2024); None: where the model has it by
        default, else at all levels.
    zero_init: number of first steps with velocity 0 (CFG-Zero*, Fan et al. 2025): for rectified flow only.
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    zero_init: int = 0
    first: float | None = None

    def __post_init__(self) -> None:
        values = {"guidance": self.scale, "guidance_rescale": self.rescale, "zero_init": self.zero_init}
        check_values("", values | {"guidance_interval": self.interval})
        low, high = self.interval or (0.0, 1.0)
        if not 0 <= low < high <= 1:
            raise UserError(f"guidance interval {low} to {high}: give noise levels 0 <= low < high <= 1")

    def scales(self, t: Tensor) -> Tensor:
        """The scale at each of the noise levels t, of its shape: 1 outside of the interval and where all is given."""
        return torch.where(guided_at(t, self.interval), self.scale, 1.0)

    def combine(self, conditional: Tensor, unconditional: Tensor, t: Tensor, layout: Packed) -> Tensor:
        """The guided prediction [T,P] of two [T,P] at levels t [R]."""
        scales = self.scales(t)
        if self.first is not None:
            place = [torch.linspace(0, 1, f) for f in (f for shape in layout.shapes for f, *_ in shape.grids)]
            grown = self.first + (self.scale - self.first) * torch.cat(place).to(scales, non_blocking=True)
            scales = torch.where(scales == self.scale, grown, scales)
        scale = scales.index_select(0, layout.frame)[:, None]
        guided = classifier_free(conditional, unconditional, scale)
        if not self.rescale:
            return guided
        counts = (t > 0).index_select(0, layout.frame)  # the network says nothing about given frames
        ratio = _deviations(conditional, counts, layout) / _deviations(guided, counts, layout).clamp_min(1e-12)
        factor = (self.rescale * ratio + 1 - self.rescale).index_select(0, layout.segment)[:, None]
        return torch.where(scale == 1, guided, guided * factor)


def _deviations(x: Tensor, counts: Tensor, layout: Packed) -> Tensor:
    """Standard deviation [N] of the elements of each sample of x [T,P], over the tokens that count [T]."""
    weight = counts.to(x.dtype)
    zeros = x.new_zeros(layout.segments)
    n = zeros.index_add(0, layout.segment, weight).clamp_min(1)
    mean = zeros.index_add(0, layout.segment, weight * x.mean(1)) / n
    centred = (x - mean.index_select(0, layout.segment)[:, None]).square().mean(1)
    return (zeros.index_add(0, layout.segment, weight * centred) / n).sqrt()


def measurement_guided(
    predict: Predict,
    scheduler: LatentVideoScheduler,
    layout: Packed,
    measure: Callable[[Tensor], Tensor],
    value: Tensor,
    weight: float,
) -> Predict:
    """`predict` led to an x of which a linear measurement is known (Video Diffusion Models, Ho et al. 2022, eq. 7 and
    section 3.1, for any path and target).

    x gets - (weight alpha / 2) of the gradient, by the noised tokens, of the squared error of measure(x) [T,P] -> any
    shape, against `value` of that shape. It must not mix samples. Weight 1 takes the error in measure(x) to have the
    variance of sigma / alpha times unit noise: means over n values, such as pooling, want n times as much. One
    backward pass through the network a call.
    """

    def guided(z: Tensor, t: Tensor) -> Tensor:
        level = t.index_select(0, layout.frame)[:, None]
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            x, _ = scheduler.recover(z, predict(z, t), level)
            (gradient,) = torch.autograd.grad((value - measure(x)).square().sum(), z)
        z, x = z.detach(), x.detach()
        alpha, _ = scheduler.path.coefficients(level)
        return _target_of(scheduler, torch.where(level > 0, x - 0.5 * weight * alpha * gradient, x), z, level)

    return guided


def reconstruction_guided(
    predict: Predict,
    scheduler: LatentVideoScheduler,
    layout: Packed,
    known: Tensor,
    clean: Tensor,
    weight: float,
) -> Predict:
    """`predict` with reconstruction guidance (Ho et al. 2022, eq. 7): known bool [T,1], clean [T,P] there.

    The unknown tokens are led by the error of the known ones' x; that of the known ones is `clean`.
    """
    zero = torch.zeros((), dtype=clean.dtype, device=clean.device)
    guided = measurement_guided(
        predict, scheduler, layout, lambda x: torch.where(known, x, zero), torch.where(known, clean, zero), weight
    )

    def kept(z: Tensor, t: Tensor) -> Tensor:
        level = t.index_select(0, layout.frame)[:, None]
        return torch.where(known, _target_of(scheduler, clean, z, level), guided(z, t))

    return kept


def _target_of(scheduler: LatentVideoScheduler, x: Tensor, z: Tensor, level: Tensor) -> Tensor:
    """The prediction from which the scheduler recovers x at z; where there is no noise, eps is taken as 0."""
    alpha, sigma = scheduler.path.coefficients(level)
    return scheduler.target(x, torch.where(sigma > 0, (z - alpha * x) / sigma.clamp_min(1e-12), 0.0), level)
