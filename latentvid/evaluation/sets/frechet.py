"""The Frechet distance between two sets of features (Dowson & Landau 1982; Heusel et al. 2017): FID, FVD, rFVD.

Axes: N M samples of two sets (n m in a half), D features, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError

BLOCK = 1024  # rows that are in float64 together
TOGETHER = 2**21  # numbers of small halves that are in memory together


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


def _centre(a: Tensor, b: Tensor) -> Tensor:
    """[D], of all rows: any centre would do, this one cancels least."""
    return (a.sum(0, dtype=torch.float64) + b.sum(0, dtype=torch.float64)) / (len(a) + len(b))


def _blocks(x: Tensor, centre: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of x [N,D] less the centre in float64, `BLOCK` at a time, so that memory does not grow by copies of all."""
    for start in range(0, len(x), BLOCK):
        part = slice(start, start + BLOCK)
        yield part, x[part].double() - centre


@dataclass
class _Sums:
    """Number of rows, their sum [D] and the sum of their products [D,D], less a common centre; float64."""

    count: Tensor | int
    rows: Tensor
    products: Tensor

    @classmethod
    def of(cls, x: Tensor, centre: Tensor, counts: Tensor | None = None) -> _Sums:
        """counts [N]: how often each row stands; None: once."""
        width = x.shape[1]
        found = cls(len(x), torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))
        for part, rows in _blocks(x, centre):
            weighted = rows if counts is None else rows * counts[part, None]
            found.rows += weighted.sum(0)
            found.products.addmm_(weighted.T, rows)
        if counts is not None:
            found.count = counts.sum()
        return found

    def less(self, other: _Sums) -> _Sums:
        return _Sums(self.count - other.count, self.rows - other.rows, self.products - other.products)

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [D] (less the centre) and covariance [D,D]."""
        mean = self.rows / self.count
        return mean, (self.products - torch.outer(self.rows, mean)) / (self.count - 1)


def _distance(first: _Sums, second: _Sums) -> Tensor:
    (mean_a, a), (mean_b, b) = first.moments, second.moments
    return (mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * _root_trace(a, b)


def weighted_frechet(a: Tensor, b: Tensor, a_counts: Tensor, b_counts: Tensor) -> Tensor:
    """The Frechet distances [R] of R resamples, where row i of a [N,D] stands a_counts[r,i] times, and so of b [M,D].

    |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) of the sets' means and covariances A, B (divided by n - 1), in
    float64. It is biased upwards for small sets: compare only figures of equal counts, and say the count.
    Counts are [R,N] and [R,M] in float64; all ones is the plain distance. Where both sets have fewer samples than
    features, the trace of the root is the sum of the singular values of Xa Xb^T / sqrt((n - 1)(m - 1)) with the
    centred rows Xa, Xb, since (A B)^(1/2) has its nonzero eigenvalues: N x M instead of D x D, without the
    rounding of D - N eigenvalues that should be 0.
    Raises UserError below two samples in either set.
    """
    totals = [counts.sum(1) for counts in (a_counts, b_counts)]
    _check(min(int(total.min()) for total in totals))
    centre, seen = _centre(a, b), max(int((counts > 0).sum(1).max()) for counts in (a_counts, b_counts))
    if seen > a.shape[1] or max(len(a), len(b)) > 2 * a.shape[1]:
        both = zip(a_counts, b_counts, strict=True)
        found = [_distance(_Sums.of(a, centre, v), _Sums.of(b, centre, w)) for v, w in both]
        return torch.stack(found).clamp_min(0)
    a, b = a - centre, b - centre  # float64
    means = [counts @ x / total[:, None] for x, counts, total in zip((a, b), (a_counts, b_counts), totals, strict=True)]
    product, squares, found = a @ b.T, [x.square().sum(1) for x in (a, b)], []
    for v, w, n, m, mean_a, mean_b in zip(a_counts, b_counts, *totals, *means, strict=True):
        # nothing of N x D is made for each resample
        i, j = v.nonzero().flatten(), w.nonzero().flatten()
        rows, columns = product @ w / m, v @ product / n  # a mean_b, b mean_a
        dots = product[i][:, j] - rows[i][:, None] - columns[j] + mean_a @ mean_b
        scale = (v[i][:, None] * w[j] / ((n - 1) * (m - 1))).sqrt()
        cross = torch.linalg.svdvals(dots.mul_(scale)).sum()
        spread = (v @ squares[0] - n * mean_a.square().sum()) / (n - 1)
        spread = spread + (w @ squares[1] - m * mean_b.square().sum()) / (m - 1)
        found.append((mean_a - mean_b).square().sum() + spread - 2 * cross)
    return torch.stack(found).clamp_min(0)


def _check(fewest: int) -> None:
    if fewest < 2:
        raise UserError(f"{fewest} samples have no covariance: a Frechet distance needs 2 or more in each set")


def frechet_of_halves(a: Tensor, b: Tensor, a_first: Tensor, b_first: Tensor) -> Tensor:
    """The distances [R,2] of the rows that `a_first` [R,N] and `b_first` [R,M] (bool) name, and of all others.

    Small halves are taken many at a time. Where there are more rows than features, the sums of products of all rows are
    made once, and those of the second half are what is left of them.
    """
    at_once = TOGETHER // max(len(a) * a.shape[1], len(b) * a.shape[1])
    if at_once > 1 and all(len(set(first.sum(1).tolist())) == 1 for first in (a_first, b_first)):
        _check(min(int(each.sum(1).min()) for first in (a_first, b_first) for each in (first, ~first)))
        found = []
        for first, other in zip(a_first.split(at_once), b_first.split(at_once), strict=True):
            sides = (first, other), (~first, ~other)
            found.append(torch.stack([_distances(_picked(a, i), _picked(b, j)) for i, j in sides], dim=1))
        return torch.cat(found)
    halves = [torch.cat([first, ~first]).double() for first in (a_first, b_first)]
    if max(int(counts.sum(1).max()) for counts in halves) <= a.shape[1]:
        return weighted_frechet(a, b, *halves).reshape(2, -1).T
    _check(min(int(counts.sum(1).min()) for counts in halves))
    centre, found = _centre(a, b), []
    whole = [_Sums.of(x, centre) for x in (a, b)]
    for firsts in zip(a_first, b_first, strict=True):
        ones = [_Sums.of(x[first], centre) for x, first in zip((a, b), firsts, strict=True)]
        others = [all_of.less(one) for all_of, one in zip(whole, ones, strict=True)]
        found.append(torch.stack([_distance(*ones), _distance(*others)]))
    return torch.stack(found).clamp_min(0)


def _picked(x: Tensor, which: Tensor) -> Tensor:
    """[R,n,D] in float64: the rows of x [N,D] that `which` [R,N] names, as many in each."""
    return x[which.nonzero()[:, 1].reshape(len(which), -1)].double()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """The distances [R] of sets [R,n,D] and [R,m,D] in float64; as in `weighted_frechet`."""
    (n, width), m = a.shape[1:], b.shape[1]
    means = a.mean(1), b.mean(1)
    a, b = a - means[0][:, None], b - means[1][:, None]
    spread = a.square().sum((1, 2)) / (n - 1) + b.square().sum((1, 2)) / (m - 1)
    if max(n, m) <= width:
        cross = torch.linalg.svdvals(a @ b.mT / ((n - 1) * (m - 1)) ** 0.5).sum(1)
    else:
        values, vectors = torch.linalg.eigh(a.mT @ a / (n - 1))
        root = vectors * values.clamp_min(0).sqrt()[:, None]
        cross = torch.linalg.eigvalsh(root.mT @ (b.mT @ b / (m - 1)) @ root).clamp_min(0).sqrt().sum(1)
    return ((means[0] - means[1]).square().sum(1) + spread - 2 * cross).clamp_min(0)


def frechet_derivatives(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives [N], [M] of the distance of a [N,D] and b [M,D] in the weights of their rows, at 1.

    d trace((A B)^(1/2)) = trace(T dA) / 2, with T the matrix of the optimal transport from N(0, A) to N(0, B) (Takatsu
    2011), and x T x of all centred rows x is the diagonal of U S U^T, where U S V^T = Xa Xb^T / sqrt((n - 1)(m - 1)).
    """
    n, m = len(a), len(b)
    if max(n, m) <= a.shape[1]:
        means = [x.mean(0, dtype=torch.float64) for x in (a, b)]
        xa, xb = a - means[0], b - means[1]
        left, values, right = torch.linalg.svd(xa @ xb.T / ((n - 1) * (m - 1)) ** 0.5, full_matrices=False)
        crosses = [lambda part, rows, of=of: of[part] @ values for of in (left.square(), right.T.square())]
    else:
        centre = _centre(a, b)
        moments = [_Sums.of(x, centre).moments for x in (a, b)]
        means = [mean + centre for mean, _ in moments]
        roots, inverses = zip(*(_root_and_inverse(covariance) for _, covariance in moments), strict=True)
        del moments
        left, values, right = torch.linalg.svd(roots[0].T @ roots[1], full_matrices=False)
        turned = [inverse @ of for inverse, of in zip(inverses, (left, right.T), strict=True)]
        # rows of U: x W / (n - 1)^0.5, a block of rows at a time
        crosses = [
            lambda part, rows, of=of, count=count: (rows @ of).square() @ values / (count - 1)
            for of, count in zip(turned, (n, m), strict=True)
        ]
    difference, total = means[0] - means[1], values.sum()
    found = []
    for sign, x, mean, cross in zip((1, -1), (a, b), means, crosses, strict=True):
        count, one, squares, of = len(x), [], [], []
        for part, rows in _blocks(x, mean):
            one.append(rows @ difference)
            squares.append(rows.square().sum(1))
            of.append(cross(part, rows))
        one, squares, of = (torch.cat(each) for each in (one, squares, of))
        spread = (squares - squares.sum() / (count - 1)) / (count - 1)
        found.append(2 * sign * one / count + spread - (of - total / (count - 1)))
    return tuple(found)


def _root_and_inverse(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """L [D,E] with L L^T the covariance [D,D], and W [D,E] with W^T L = 1, of the directions in which it has any."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > 1e-10 * values.max()
    root = values[kept].sqrt()
    return vectors[:, kept] * root, vectors[:, kept] / root
