"""A mixture of Gaussians whose denoiser is known in closed form: what solvers are measured against.

Axes: T points (each a token of its own), P features, M components.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.diffusion.solvers import Predict
from latentvid.packing import Packed


class Mixture:
    """weights [M] (sum 1), means [M,P], covariances [M,P,P], all float64."""

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights, self.means = weights.double(), means.double()
        self.spread, self.basis = torch.linalg.eigh(covariances.double())  # variances [M,P], directions [M,P,P]

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Points [count,P], float64."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        unit = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + torch.einsum("tpk,tk->tp", self.basis[which], unit * self.spread[which].sqrt())

    def denoise(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x | z = alpha x + sigma eps] [T,P] of points z [T,P] with alpha, sigma [T,1]; z must not be all data."""
        z, alpha, sigma = z.double(), alpha.double()[:, None], sigma.double()[:, None]  # [T,1,1]
        off = torch.einsum("mpk,tmp->tmk", self.basis, z[:, None] - alpha * self.means)  # [T,M,P]
        variance = alpha**2 * self.spread + sigma**2  # of z in each direction
        log_mass = self.weights.log() - 0.5 * (off**2 / variance + variance.log()).sum(-1)  # [T,M]
        each = self.means + torch.einsum("mpk,tmk->tmp", self.basis, alpha * self.spread / variance * off)
        return torch.einsum("tm,tmp->tp", log_mass.softmax(-1), each)

    def predictor(self, scheduler: LatentVideoScheduler, layout: Packed) -> Predict:
        """The perfect network for the scheduler's path and target, in z's dtype."""

        def predict(z: Tensor, t: Tensor) -> Tensor:
            level = t.index_select(0, layout.frame)[:, None]
            alpha, sigma = (c.double() for c in scheduler.path.coefficients(level))
            x = torch.where(sigma > 0, self.denoise(z, alpha, sigma.clamp_min(1e-9)), z.double())
            eps = torch.where(sigma > 0, (z.double() - alpha * x) / sigma.clamp_min(1e-9), 0.0)
            return scheduler.target(x, eps, level).to(z.dtype)

        return predict


def three_in_a_plane() -> Mixture:
    """Three Gaussians in the plane, of unequal weights, widths and directions."""
    means = torch.tensor([[-1.0, 0.4], [0.7, 0.9], [0.6, -1.0]])
    roots = torch.tensor([[[0.3, 0.0], [0.1, 0.2]], [[0.4, -0.2], [0.0, 0.2]], [[0.15, 0.0], [0.0, 0.5]]])
    return Mixture(torch.tensor([0.5, 0.3, 0.2]), means, roots @ roots.mT)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 32) -> float:
    """Root of the mean squared 2-Wasserstein distance of equal sets of points [T,2] over directions in the plane."""
    if a.shape != b.shape or a.shape[1] != 2:
        raise ValueError(f"{list(a.shape)} and {list(b.shape)}: two equal sets of points in the plane are needed")
    angle = torch.arange(directions, dtype=torch.float64) * (math.pi / directions)
    lines = torch.stack([angle.cos(), angle.sin()])  # [2,directions]
    return float(((a.double() @ lines).sort(0).values - (b.double() @ lines).sort(0).values).square().mean().sqrt())
