"""The Frechet distance between two sets of features (Dowson & Landau 1982; Heusel et al. 2017): FID, FVD, rFVD.

Axes: N M samples of two sets, D features, R resamples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError


def _root(covariance: Tensor) -> Tensor:
    """L [D,D] with L L^T the covariance. By Cholesky, a tenth of the time of eigenvectors, where it has full rank."""
    found, failed = torch.linalg.cholesky_ex(covariance)
    if failed == 0:
        return found
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()


def _root_trace(first: Tensor, second: Tensor) -> Tensor:
    """trace((A B)^(1/2)) of covariances [D,D]."""
    root = _root(first)
    # A B is similar to the symmetric L^T B L, where A = L L^T: real eigenvalues, at least 0 but for rounding
    return torch.linalg.eigvalsh(root.T @ second @ root).clamp_min(0).sqrt().sum()


def _centred(a: Tensor, b: Tensor) -> list[Tensor]:
    """Both in float64, less one centre: any would do, this one cancels least."""
    centre = (a.sum(0, dtype=torch.float64) + b.sum(0, dtype=torch.float64)) / (len(a) + len(b))
    return [x.to(torch.float64, copy=True).sub_(centre) for x in (a, b)]


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
    _check(min(int(total.min()) for total in totals))
    a, b = _centred(a, b)
    means = [counts @ x / total[:, None] for x, counts, total in zip((a, b), (a_counts, b_counts), totals, strict=True)]
    seen = max(int((counts > 0).sum(1).max()) for counts in (a_counts, b_counts))
    narrow = seen <= a.shape[1] and max(len(a), len(b)) <= 2 * a.shape[1]
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


def _check(fewest: int) -> None:
    if fewest < 2:
        raise UserError(f"{fewest} samples have no covariance: a Frechet distance needs 2 or more in each set")


def frechet_of_halves(a: Tensor, b: Tensor, a_first: Tensor, b_first: Tensor) -> Tensor:
    """The distances [R,2] of the rows that `a_first` [R,N] and `b_first` [R,M] (bool) name, and of all others.

    Where there are more rows than features, the sums of products of all rows are made once, and those of the second
    half are what is left of them.
    """
    halves = [torch.cat([first, ~first]).double() for first in (a_first, b_first)]
    if max(int(counts.sum(1).max()) for counts in halves) <= a.shape[1]:
        return weighted_frechet(a, b, *halves).reshape(2, -1).T
    _check(min(int(counts.sum(1).min()) for counts in halves))
    sides = [(x, x.sum(0), x.T @ x, first) for x, first in zip(_centred(a, b), (a_first, b_first), strict=True)]
    found = []
    for r in range(len(a_first)):
        pairs = []
        for x, total, products, firsts in sides:
            part = x[firsts[r]]
            one = (len(part), part.sum(0), part.T @ part)
            other = (len(x) - len(part), total - one[1], products - one[2])
            pairs.append([(s / n, (p - s[:, None] * s / n) / (n - 1)) for n, s, p in (one, other)])
        for (mean_a, first), (mean_b, second) in zip(*pairs, strict=True):
            traces = first.trace() + second.trace() - 2 * _root_trace(first, second)
            found.append((mean_a - mean_b).square().sum() + traces)
    return torch.stack(found).clamp_min(0).reshape(-1, 2)


def frechet_derivatives(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives [N], [M] of the distance of a [N,D] and b [M,D] in the weights of their rows, at 1.

    d trace((A B)^(1/2)) = trace(T dA) / 2, with T the matrix of the optimal transport from N(0, A) to N(0, B) (Takatsu
    2011), and x T x of all centred rows x is the diagonal of U S U^T, where U S V^T = Xa Xb^T / sqrt((n - 1)(m - 1)).
    """
    a, b = _centred(a, b)
    difference = a.mean(0) - b.mean(0)
    xa, xb = a - a.mean(0), b - b.mean(0)
    n, m = len(a), len(b)
    if max(n, m) <= a.shape[1]:
        left, values, right = torch.linalg.svd(xa @ xb.T / ((n - 1) * (m - 1)) ** 0.5, full_matrices=False)
        cross = left.square() @ values, right.T.square() @ values
    else:
        roots, white = zip(*(_whitened(x) for x in (xa, xb)), strict=True)
        left, values, right = torch.linalg.svd(roots[0].T @ roots[1], full_matrices=False)
        cross = (white[0] @ left).square() @ values, (white[1] @ right.T).square() @ values
    return tuple(
        2 * sign * (x @ difference) / count
        + (x.square().sum(1) - x.square().sum() / (count - 1)) / (count - 1)
        - (of - values.sum() / (count - 1))
        for sign, x, count, of in ((1, xa, n, cross[0]), (-1, xb, m, cross[1]))
    )


def _whitened(x: Tensor) -> tuple[Tensor, Tensor]:
    """L [D,E] with L L^T the covariance of the centred rows x [N,D]; W [N,E] with W L^T = x / (N - 1)^0.5."""
    scaled = x / (len(x) - 1) ** 0.5
    values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    kept = values > 1e-10 * values.max()
    root = values[kept].sqrt()
    return vectors[:, kept] * root, scaled @ vectors[:, kept] / root
