"""The Frechet distance between two sets of features (Dowson & Landau 1982; Heusel et al. 2017): FID, FVD, rFVD.

Axes: N samples, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError


def _root_trace(first: Tensor, second: Tensor) -> Tensor:
    """trace((A B)^(1/2)) of covariances [D,D]."""
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    # A B is similar to the symmetric A^(1/2) B A^(1/2): real eigenvalues, at least 0 but for rounding
    return torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()


def weighted_frechet(a: Tensor, b: Tensor, a_counts: Tensor, b_counts: Tensor) -> Tensor:
    """The Frechet distances [R] of R resamples, where row i of a [N,D] stands a_counts[r,i] times, and so of b [M,D].

    |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) of the sets' means and covariances A, B (divided by n - 1), in
    float64. It is biased upwards for small sets: compare only figures of equal counts, and say the count.
    Counts are [R,N] and [R,M] in float64; all ones is the plain distance. Where both sets have fewer samples than
    features, the trace of the root is the sum of the singular values of Xa Xb^T / sqrt((n - 1)(m - 1)) with the
    centred rows Xa, Xb, since (A B)^(1/2) has its nonzero eigenvalues: N x M in the place of D x D, without the
    rounding of D - N eigenvalues that should be 0.
    Raises UserError below two samples in either set.
    """
    totals = [counts.sum(1) for counts in (a_counts, b_counts)]
    fewest = min(int(total.min()) for total in totals)
    if fewest < 2:
        raise UserError(f"{fewest} samples have no covariance: a Frechet distance needs 2 or more in each set")
    # any centre would do: this one cancels least
    centre = (a.sum(0, dtype=torch.float64) + b.sum(0, dtype=torch.float64)) / (len(a) + len(b))
    a, b = (x.to(torch.float64, copy=True).sub_(centre) for x in (a, b))
    means = [counts @ x / total[:, None] for x, counts, total in zip((a, b), (a_counts, b_counts), totals, strict=True)]
    narrow = max(len(a), len(b)) <= a.shape[1]
    product = a @ b.T if narrow else None  # [N,M]
    squares = [x.square().sum(1) for x in (a, b)]
    found = []
    for v, w, n, m, mean_a, mean_b in zip(a_counts, b_counts, *totals, *means, strict=True):
        i, j = v.nonzero().flatten(), w.nonzero().flatten()
        if product is not None:  # nothing of N x D is made for each resample
            rows, columns = product @ w / m, v @ product / n  # a mean_b, b mean_a
            dots = product[i][:, j] - rows[i][:, None] - columns[j] + mean_a @ mean_b
            scale = (v[i][:, None] * w[j] / ((n - 1) * (m - 1))).sqrt()
            cross = torch.linalg.svdvals(dots.mul_(scale)).sum()
            spread = (v @ squares[0] - n * mean_a.square().sum()) / (n - 1)
            spread = spread + (w @ squares[1] - m * mean_b.square().sum()) / (m - 1)
        else:
            first, second = (
                ((x - mean).T * counts) @ (x - mean) / (total - 1)
                for x, counts, total, mean in ((a[i], v[i], n, mean_a), (b[j], w[j], m, mean_b))
            )
            cross, spread = _root_trace(first, second), first.trace() + second.trace()
        found.append((mean_a - mean_b).square().sum() + spread - 2 * cross)
    return torch.stack(found).clamp_min(0)
