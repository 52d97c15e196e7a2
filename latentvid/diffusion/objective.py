"""Prediction targets as linear maps of (x, eps), their inversion, the loss and its weighting.

Every target is y = p x + q eps; with z = alpha x + sigma eps a 2x2 system gives x and eps back.
Axes: T tokens, P token features, R latent frames, N samples. torch is imported where it is used: a
configuration, and its help, do without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..limits import check_fields, setting

if TYPE_CHECKING:
    from torch import Tensor

    from ..packing import Packed
    from .path import Path

TARGETS = ("eps", "x", "v", "flow", "edm")


def target_coefficients(target: str, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) of the target at levels t: eps (0,1), x (1,0), v (-sigma, alpha) (Salimans & Ho 2022), flow z'(t).

    edm, of the path of that name, is what their network F predicts (Karras et al. 2022, eq. 8), (x - c_skip y) / c_out
    with y = x + noise n: there (sigma / sigma_data^2, -alpha), of size 1 at every level. With sigma_data 1 it is -v.
    """
    import torch

    alpha, sigma = path.coefficients(t)
    if target == "flow":
        return path.derivatives(t)
    if target == "edm":
        return sigma / path.sigma_data**2, -alpha
    return {
        "eps": (torch.zeros_like(alpha), torch.ones_like(alpha)),
        "x": (torch.ones_like(alpha), torch.zeros_like(alpha)),
        "v": (-sigma, alpha),
    }[target]


def recover(z: Tensor, y: Tensor, target: str, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """(x, eps) from the noised z and the prediction y, both [..., P], at levels t broadcastable against them.

    Solves alpha x + sigma eps = z, p x + q eps = y, with determinant alpha q - sigma p. Where that is zero z holds
    only the unknown that is predicted (eps at alpha = 0, x at sigma = 0): that one is z, the other is taken as zero.
    """
    import torch

    alpha, sigma = path.coefficients(t)
    p, q = target_coefficients(target, path, t)
    det = alpha * q - sigma * p
    singular = det.abs() < 1e-8
    det = torch.where(singular, torch.ones_like(det), det)
    x = (q * z - sigma * y) / det
    eps = (alpha * y - p * z) / det
    if target == "eps":  # alpha = 0: z = eps
        return torch.where(singular, torch.zeros_like(x), x), torch.where(singular, z, eps)
    return torch.where(singular, z, x), torch.where(singular, torch.zeros_like(eps), eps)  # sigma = 0: z = x


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """Weight of the squared error by noise level.

    none: 1, on the target as it is. The others are weights of the error in x, whatever the target is, with
    SNR = alpha^2 / sigma^2: snr (that of plain eps prediction), min_snr: min(SNR, gamma) (Hang et al. 2023, eq. 8),
    sigmoid: SNR sigmoid(bias - log SNR), so the error in eps has the sigmoid (Kingma & Gao 2023, section 4).
    """

    kind: Literal["none", "snr", "min_snr", "sigmoid"] = setting("weight of the error by noise level", default="none")
    gamma: float = setting("min_snr: largest weight of the error in x", default=5.0)
    bias: float = setting("sigmoid: log SNR at which the weight of the error in eps is a half", default=0.0)

    def __post_init__(self) -> None:
        check_fields(self, "weighting")

    def check(self, target: str, path: Path) -> None:
        """Raises ValueError where the weight has no bound."""
        import torch

        if self.kind == "snr" and target == "x" and path.snap(torch.tensor(1e-9)) < 1e-8:
            raise ValueError(
                "weighting 'snr' has no bound for target 'x' on a path with noise levels down to 0: use min_snr or "
                "sigmoid, or target v, eps or flow"
            )

    def __call__(self, target: str, path: Path, t: Tensor) -> Tensor:
        """Weights of the target's squared error at levels t, of t's shape; finite also where t = 0."""
        import torch

        if self.kind == "none":
            return torch.ones_like(t)
        alpha, sigma = path.coefficients(t)
        p, q = target_coefficients(target, path, t)
        a, s = alpha.square(), sigma.square()
        # an error d in x, z being what it is, is an error d (sigma p - alpha q) / sigma in the target
        scale = (alpha * q - sigma * p).square().clamp_min(1e-12)
        if self.kind == "snr":
            return a / scale
        if self.kind == "min_snr":
            return torch.minimum(a, self.gamma * s) / scale
        return a * s / (s + a * math.exp(-self.bias)) / scale


def loss_per_sample(
    prediction: Tensor,
    target: Tensor,
    timestep: Tensor,
    layout: Packed,
    weight: Tensor | None = None,
    known: Tensor | None = None,
    known_tokens: Tensor | None = None,
) -> Tensor:
    """Mean squared error of each sample [N], over its tokens [T,P]; frames at noise level 0 are given and do not count.

    `weight` [R] multiplies the error of each frame. `known` bool [T]: tokens that are given at whatever level, and do
    not count; with it `known_tokens` [R], how many of each frame of the whole sample they are.

    A sample whose frames are all given has loss 0. A piece of a sample has the part that its tokens are of the mean:
    the losses of a pack's pieces add up to the pack's.
    """
    error = (prediction.float() - target.float()).square().mean(-1)  # [T]
    counts = (timestep > 0).float()  # [R]
    zeros = error.new_zeros(layout.segments)
    rows = counts if weight is None else counts * weight
    of_token, frame_tokens = rows.index_select(0, layout.frame), layout.frame_tokens
    if known is not None:
        of_token, frame_tokens = of_token * ~known, frame_tokens - known_tokens
    total = zeros.index_add(0, layout.segment, error * of_token)
    return total / zeros.index_add(0, layout.frame_segment, counts * frame_tokens).clamp_min(1.0)
