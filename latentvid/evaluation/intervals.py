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

The jackknife less the quadratic part is the variance, where that is more than the quadratic part alone: simulated, it
is right within a tenth from 16 features to more features than files. The t distribution is of as many degrees of
freedom as Welch (1947) gives.

A distance is not spread alike at both ends: its linear part grows with it, from nothing where two sets are alike, so
that a distance which is small by chance comes with a variance that is too small, and the other way round. So each end
x of the interval is where the spread that belongs to x reaches the score, as in Wilson's (1927) interval of a share:
(x - score)^2 = t^2 variance(x), with the linear part in proportion to x above what sets that are alike have. That is 0
for unbiased distances (KID, KVD); of biased ones (FID, FVD) it is the bias, by which the mean of the halves is above
the score, since halves have twice of it. How steep the linear part is, is known badly where sets are hardly apart:
there it is drawn to what is common. The constants were chosen by simulation: `benchmarks/intervals.py` measures
coverage and width.

Axes: K clips, U files, R halvings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.stats import t as student
from torch import Tensor

from ..rng import generator
from .rows import Score
from .sets.scores import SetScore

LEVEL = 0.95
MORE, SMALL = 5, 2048  # times as many halvings of sets of up to so many rows, where they cost little: less by chance
FEWEST = 4  # files of a set, from which on halves have two each
# of ends of distances that are alike at 0: by how many deviations of the quadratic part the slope is drawn to its usual
# value, STEEP of these a deviation
DRAWN_BELOW, DRAWN_ABOVE, STEEP = 2.0, 6.0, 0.3
# of ends of biased distances: of the slope below; of the skewness above, and what that end is longer
LESS, SKEWED, LONGER = 0.75, 0.1, 1.1


@dataclass(frozen=True)
class Spread:
    """jackknife, quadratic: variances as the module says. freedom: degrees of freedom. halves: the mean score of
    halves; None where there are none."""

    jackknife: float
    quadratic: float
    freedom: float
    halves: float | None = None

    @property
    def linear(self) -> float:
        return max(self.jackknife - 2 * self.quadratic, 0.0)

    @property
    def variance(self) -> float:
        return self.quadratic + self.linear

    @property
    def _times(self) -> float:
        return float(student.ppf((1 + LEVEL) / 2, self.freedom))

    def interval(
        self, value: float, least: float = -math.inf, alike: float | Literal["bias"] | None = None
    ) -> tuple[float, float]:
        """(low, high) around the value, no lower than a score can be.

        alike: the mean of scores of sets that are alike; "bias": what the halves say of it; None: not a distance.
        """
        if alike is None:
            low, high = self.around(value)
        elif alike == "bias":
            low, high = self._of_biased(value)
        else:
            low, high = (alike + end for end in self._of_unbiased(value - alike))
        return max(low, least), high

    def around(self, value: float) -> tuple[float, float]:
        """(low, high), for a difference, which may be turned round."""
        half = self._times * math.sqrt(self.variance)
        return value - half, value + half

    def _of_unbiased(self, value: float) -> tuple[float, float]:
        """Of a distance whose mean is 0 for sets that are alike."""
        deviation, above, linear = math.sqrt(self.quadratic), max(value, 0.0), self.jackknife - 2 * self.quadratic
        if deviation == 0:
            return self.around(value)

        def slope(drawn: float, usual: float) -> float:
            return max(linear + drawn * usual * self.quadratic, 0.0) / (above + drawn * deviation)

        low = value - self._times * deviation  # 0 is left out where the quadratic part alone leaves it out
        if low > 0:
            steep = slope(DRAWN_BELOW, STEEP)
            low = value + _end(self._times, self.quadratic + steep * value, steep, -1)
        steep = slope(DRAWN_ABOVE, STEEP * above**2 / (above**2 + self.quadratic))
        return low, value + _end(self._times, self.quadratic + steep * above, steep, 1)

    def _of_biased(self, value: float) -> tuple[float, float]:
        deviation, bias = math.sqrt(self.quadratic), 0.0 if self.halves is None else max(self.halves - value, 0.0)
        apart = max(value - bias, deviation)
        if apart == 0 or self.variance == 0:
            return self.around(value)
        low = _end(self._times, self.variance, LESS * self.linear / apart, -1)
        high = _end(self._times, self.variance, SKEWED * self.linear / math.sqrt(self.variance), 1)
        return value + low, value + LONGER * high

    def p(self, value: float) -> float:
        """Two-sided, of a value whose mean is 0."""
        if self.variance == 0:
            return float(value == 0)
        return float(2 * student.sf(abs(value) / math.sqrt(self.variance), self.freedom))


def _end(times: float, variance: float, slope: float, sign: int) -> float:
    """x with x^2 = times^2 (variance + slope x), the one above 0 or (sign -1) the one below."""
    half = times**2 * slope / 2
    return half + sign * math.sqrt(half**2 + times**2 * variance)


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
    return Spread(jackknife, quadratic, freedom, None if halves is None else float(halves.mean()))


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

    resamples: halvings, of scores of sets; `MORE` times as many where they are quick.
    """
    if real is None:
        real_files = None
    sets = [files] if real is None else [files, real_files]
    quadratic = isinstance(score, SetScore)
    if min(max(each) + 1 for each in sets) < (FEWEST if quadratic else 2):
        return None
    derivatives = score.derivatives(rows, real)
    found = [by_file(each, of) for each, of in zip(derivatives, sets, strict=False)]
    if not quadratic:
        return spread(found)
    if score.quick and max(sum(map(len, each)) for each in (rows, real or ())) <= SMALL:
        resamples *= MORE
    return spread(found, of_halves(score, rows, files, real, real_files, resamples))


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
