"""Prediction targets as linear maps of (x, eps), their inversion, and the loss.

Every target is y = p x + q eps; with z = alpha x + sigma eps a 2x2 system gives x and eps back.
Axes: T tokens, P token features, R noise rows, N samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..packing import Packed
from .path import Path

TARGETS = ("eps", "x", "v", "flow")


def target_coefficients(target: str, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) of the target at levels t: eps (0,1), x (1,0), v (-sigma, alpha) (Salimans & Ho 2022), flow z'(t)."""
    alpha, sigma = path.coefficients(t)
    if target == "flow":
        return path.derivatives(t)
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


def loss_per_sample(prediction: Tensor, target: Tensor, timestep: Tensor, layout: Packed) -> Tensor:
    """Mean squared error of each sample [N], over its tokens [T,P]; rows at noise level 0 are given and do not count.

    A sample whose rows are all given has loss 0. A piece of a sample has the part that its tokens are of the mean: the
    losses of a pack's pieces add up to the pack's.
    """
    error = (prediction.float() - target.float()).square().mean(-1)  # [T]
    counts = (timestep > 0).float()  # [R]
    zeros = error.new_zeros(layout.segments)
    total = zeros.index_add(0, layout.segment, error * counts.index_select(0, layout.row))
    return total / zeros.index_add(0, layout.row_segment, counts * layout.row_tokens).clamp_min(1.0)
