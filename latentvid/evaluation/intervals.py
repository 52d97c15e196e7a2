"""95 % intervals of scores: how far a score may lie from the mean of the scores of other samples of as many files.

Files are the units, never clips of one file apart: what they share would count as often as they are cut. Resampling
with repetition is no way for scores of sets: a resample holds about 63 % of the files, and where there are about as
many clips as features (FID, FVD) or the sets are alike (KID, KVD) such scores spread otherwise than whole ones. Here
the variance is taken apart (Hoeffding 1948) into

- what is linear in the files. The infinitesimal jackknife (Jaeckel 1972; Efron & Tibshirani 1993, chapter 21), the sum
  of the squared derivatives of the score in the files' weights, sees it once, and the next part twice (Efron & Stein
  1981);
- what is quadratic: all there is where two sets are alike. Scores of two halves that share no file move against each
  other by the linear part and together by this one: over random halvings Var(first + second) / 4 is its variance.

The variance is their sum, and at least the quadratic part, with the t distribution of as many degrees of freedom as
Welch (1947) gives. The jackknife grows with the score itself: where sets are nearly alike it is too large if the score
is above its mean by chance. So below the score the linear part is shrunk where it is not large beside the quadratic
one; and where it is known what a score is on average of two sets that are alike (KID, KVD: 0), the linear part is taken
to grow from there in proportion, as in Wilson's (1927) interval of a share: 0 is left out where the quadratic part
alone leaves it out. Both were chosen by simulation: `benchmarks/intervals.py` measures coverage and width.

Axes: K clips, U files, R halvings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import t as student
from torch import Tensor

from ..rng import generator
from .rows import Score
from .sets.scores import SetScore

LEVEL = 0.95
FEWEST = 4  # files of a set, from which on halves have two each
SHRINK = 8.0  # of the linear part below the score; chosen by simulation


@dataclass(frozen=True)
class Spread:
    """jackknife, quadratic: variances as the module says. freedom: degrees of freedom."""

    jackknife: float
    quadratic: float
    freedom: float

    @property
    def linear(self) -> float:
        return max(self.jackknife - 2 * self.quadratic, 0.0)

    @property
    def variance(self) -> float:
        if self.jackknife <= 2 * self.quadratic:
            return self.quadratic
        return self.jackknife - 2 * self.quadratic**2 / self.jackknife  # where sets are far apart, all of it

    def interval(self, value: float, least: float = -math.inf, alike: float | None = None) -> tuple[float, float]:
        """(low, high) around the value, no lower than a score can be. alike: its mean for sets that are alike."""
        times = float(student.ppf((1 + LEVEL) / 2, self.freedom))
        low = value - times * math.sqrt(self._below) if alike is None else alike + self._apart(value - alike, times)
        return max(low, least), value + times * math.sqrt(self.variance)

    def around(self, value: float) -> tuple[float, float]:
        """(low, high), for a difference, which may be turned round."""
        half = float(student.ppf((1 + LEVEL) / 2, self.freedom)) * math.sqrt(self.variance)
        return value - half, value + half

    @property
    def _below(self) -> float:
        """The variance for the lower end."""
        if self.linear == 0:
            return self.quadratic
        return self.quadratic + self.linear / (1 + SHRINK * (self.quadratic / self.linear) ** 2)

    def _apart(self, value: float, times: float) -> float:
        """The lower end x of a value whose mean is 0 for sets that are alike: (value - x)^2 = times^2 variance(x), in
        which the linear part is in proportion to x above 0, and nothing below."""
        flat = value - times * math.sqrt(self.quadratic)
        if flat <= 0:
            return flat
        half = value + times**2 * self.linear / value / 2
        return half - math.sqrt(max(half**2 - value**2 + times**2 * self.quadratic, 0.0))

    def p(self, value: float) -> float:
        """Two-sided, of a value whose mean is 0."""
        if self.variance == 0:
            return float(value == 0)
        return float(2 * student.sf(abs(value) / math.sqrt(self.variance), self.freedom))


def by_file(derivatives: Tensor, files: Sequence[int]) -> Tensor:
    """Sums [U] of the derivatives [K] of each file's clips. files: [K], 0..U - 1."""
    of = torch.as_tensor(files)
    return torch.zeros(int(of.max()) + 1, dtype=torch.float64).index_add_(0, of, derivatives.double())


def spread(sets: Sequence[Tensor], halves: Tensor | None = None) -> Spread:
    """sets: of each set that was drawn by itself, the score's derivatives in its files' weights [U].
    halves: scores [R,2] of complementary halves of the files; None for a score that is linear in them.

    Raises ValueError for a set of one file, which says nothing of others.
    """
    if min(len(found) for found in sets) < 2:
        raise ValueError("one file has no spread: give two or more")
    parts = [len(found) / (len(found) - 1) * float((found - found.mean()).square().sum()) for found in sets]
    jackknife = sum(parts)
    # Welch-Satterthwaite
    chance = sum(part**2 / (len(found) - 1) for part, found in zip(parts, sets, strict=True))
    freedom = jackknife**2 / chance if chance else float(min(len(found) for found in sets) - 1)
    quadratic = 0.0 if halves is None else float((halves - halves.mean(0)).sum(1).var()) / 4
    return Spread(jackknife, quadratic, freedom)


def halvings(files: int, resamples: int, purpose: str) -> Tensor:
    """bool [R,U]: which files are in the first half of each halving; the same for the same arguments."""
    found = torch.zeros(resamples, files, dtype=torch.bool)
    for r in range(resamples):
        found[r, torch.randperm(files, generator=generator(0, r, f"halves {purpose}"))[: files // 2]] = True
    return found


def of_score(
    score: Score,
    rows: Sequence[Tensor],
    files: Sequence[int],
    real: Sequence[Tensor] | None,
    real_files: Sequence[int] | None,
    resamples: int,
) -> Spread | None:
    """The spread of a score of clips [K] in files [K] 0..U - 1. None where a set has too few files.

    resamples: halvings, of scores of sets.
    """
    if real is None:
        real_files = None
    sets = [files] if real is None else [files, real_files]
    quadratic = isinstance(score, SetScore)
    if min(max(each) + 1 for each in sets) < (FEWEST if quadratic else 2):
        return None
    derivatives = score.derivatives(rows, real)
    found = [by_file(each, of) for each, of in zip(derivatives, sets, strict=False)]
    return spread(found, of_halves(score, rows, files, real, real_files, resamples) if quadratic else None)


def of_halves(
    score: SetScore,
    rows: Sequence[Tensor],
    files: Sequence[int],
    real: Sequence[Tensor] | None,
    real_files: Sequence[int] | None,
    resamples: int,
) -> Tensor:
    """Scores [R,2] of complementary halves of the files of both sets."""
    first, real_first = (
        None if of is None else halvings(max(of) + 1, resamples, purpose)[:, torch.as_tensor(of)]
        for of, purpose in ((files, "clips"), (real_files, "real"))
    )
    return score.of_halves(rows, first, real, real_first)
