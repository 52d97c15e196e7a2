"""The Frechet distance between two sets of features (Dowson & Landau 1982; Heusel et al. 2017): FID, FVD, rFVD.

Axes: N samples, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError


class Moments:
    """Mean and covariance of features that arrive in pieces, in float64; `count` says of how many samples.

    Pieces are merged by the pairwise update of Chan, Golub & LeVeque (1983), which does not cancel.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)  # [D]
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)  # [D,D], sum of outer products about the mean

    def add(self, features: Tensor) -> None:
        """features: [N,D], on any device, of any float type."""
        x = features.detach().double().cpu()
        if x.ndim != 2 or not len(x) or (self.count and x.shape[1] != len(self.mean)):
            raise ValueError(f"moments want features [N,D] of one width, got {list(features.shape)}")
        if not self.count:
            self.mean, self.scatter = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1], x.shape[1])
        n, mean = len(x), x.mean(0)
        step, centred = mean - self.mean, x - mean
        total = self.count + n
        self.scatter += centred.T @ centred + step.outer(step) * (self.count * n / total)
        self.mean += step * (n / total)
        self.count = total

    def covariance(self) -> Tensor:
        """[D,D], unbiased. Raises UserError below two samples."""
        if self.count < 2:
            raise UserError(f"{self.count} samples have no covariance: a Frechet distance needs 2 or more in each set")
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) of the sets' means and covariances.

    It is biased upwards for small sets: compare only figures of equal counts, and say the count.
    Raises UserError below two samples in either set.
    """
    first, second = a.covariance(), b.covariance()
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    # A B is similar to the symmetric A^(1/2) B A^(1/2): real eigenvalues, at least 0 but for rounding
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * cross
    return max(0.0, float(distance))
