"""The kernel distance between two sets of features (Binkowski et al. 2018): KID, KVD.

It is the unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, equation 3) with the kernel
(x y / D + 1)^3, which torchmetrics calls `poly_mmd`. Packages average it over random subsets of the samples to save
memory; this is what that average tends to: the estimate of all samples at once, summed block by block.
Axes: N M rows of two sets, D features, K L their clips, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...errors import UserError

BLOCK = 1024  # rows whose kernels are in memory together


def _kernels(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of the kernel matrix [N,M]."""
    for start in range(0, len(a), BLOCK):
        part = slice(start, start + BLOCK)
        yield part, (a[part] @ b.T / a.shape[1] + 1) ** 3


def _within(x: Tensor, of: Tensor, counts: Tensor) -> Tensor:
    """Mean kernel [R] over pairs of different rows, of the same copy of a clip or of different clips.

    Two copies of one clip are no pair: in a resample they would count as agreement that no two clips show.
    x: [N,D]; of: [N], each row's clip; counts: [R,K] copies of each clip.
    """
    clips = counts.shape[1]
    rows = counts[:, of]  # [R,N]
    everything = x.new_zeros(len(counts))
    same, own = x.new_zeros(clips), x.new_zeros(clips)  # sums of kernels inside each clip; of each row with itself
    for part, kernel in _kernels(x, x):
        everything += ((rows[:, part] @ kernel) * rows).sum(1)
        same.index_add_(0, of[part], (kernel * (of[part][:, None] == of)).sum(1))
        own.index_add_(0, of[part], kernel.diagonal(part.start))
    size = torch.bincount(of, minlength=clips).double()  # rows of a clip
    pairs = rows.sum(1).square() - counts.square() @ size.square() + counts @ (size.square() - size)
    if (pairs < 1).any():
        raise UserError("one sample has no pairs: a kernel distance needs 2 or more in each set")
    return (everything - counts.square() @ same + counts @ (same - own)) / pairs


def weighted_mmd(a: Tensor, b: Tensor, a_of: Tensor, b_of: Tensor, a_counts: Tensor, b_counts: Tensor) -> Tensor:
    """Kernel distances [R] of R resamples of clips; below 0 by chance where the sets are alike.

    a [N,D], b [M,D]: rows; a_of [N], b_of [M]: the clip of each; a_counts [R,K], b_counts [R,L]: how often each clip
    stands in each resample, in float64 (all ones: the plain distance).
    Raises UserError below two samples in either set.
    """
    a, b = a.double(), b.double()
    a_rows, b_rows = a_counts[:, a_of], b_counts[:, b_of]
    between = sum(((a_rows[:, part] @ kernel) * b_rows).sum(1) for part, kernel in _kernels(a, b))
    between = between / (a_rows.sum(1) * b_rows.sum(1))
    return _within(a, a_of, a_counts) + _within(b, b_of, b_counts) - 2 * between


def mmd_derivatives(a: Tensor, b: Tensor, a_of: Tensor, b_of: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives [K], [L] of `weighted_mmd` in the counts of the clips, at 1. Arguments are as there."""
    a, b = a.double(), b.double()
    sides = []
    for x, of, other in ((a, a_of, b), (b, b_of, a)):
        clips = int(of.max()) + 1
        size = torch.bincount(of, minlength=clips).double()
        sums, same, own, across = (x.new_zeros(clips) for _ in range(4))  # of kernels, by clip
        for part, kernel in _kernels(x, x):
            sums.index_add_(0, of[part], kernel.sum(1))
            same.index_add_(0, of[part], (kernel * (of[part][:, None] == of)).sum(1))
            own.index_add_(0, of[part], kernel.diagonal(part.start))
        for part, kernel in _kernels(x, other):
            across.index_add_(0, of[part], kernel.sum(1))
        pairs = len(x) * (len(x) - 1)
        within = (sums.sum() - own.sum()) / pairs
        of_pairs = 2 * size * len(x) - size.square() - size
        inside = (2 * sums - same - own - within * of_pairs) / pairs
        between = across.sum() / (len(x) * len(other))
        sides.append(inside - 2 * (across / len(other) - between * size) / len(x))
    return tuple(sides)
