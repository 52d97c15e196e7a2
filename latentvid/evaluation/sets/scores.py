"""Scores of sets of clips: Frechet and kernel distances to real clips, and the Inception score.

Each can be taken of many resamples of the clips at once, in which a clip stands so and so often.
Axes: K clips, n rows of a clip, N rows of all, D columns, R resamples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .frechet import frechet_derivatives, frechet_of_halves, weighted_frechet
from .inception import FEATURES
from .kernel_distance import mmd_derivatives, weighted_mmd

LARGE, FEW = 2048, 40  # rows, from which on Frechet distances of a few halves must do: each takes seconds


@dataclass(frozen=True)
class SetScore(ABC):
    """Of the rows' columns `first` to `last` (beyond it; None: the end)."""

    name: str
    extractor: str
    first: int = 0
    last: int | None = None
    least: ClassVar[float] = -math.inf  # no score is below, so no interval reaches there
    # the mean of scores of sets that are alike; "bias": it depends on them; None: not a distance of sets
    alike: ClassVar[float | Literal["bias"] | None] = None
    quick: ClassVar[bool] = False  # whether many halves cost little more than few: one product serves all

    def __call__(self, rows: Sequence[Tensor], real: Sequence[Tensor] | None = None) -> float:
        once = [None if clips is None else torch.ones(1, len(clips), dtype=torch.float64) for clips in (rows, real)]
        return float(self.of_resamples(rows, once[0], real, once[1]))

    @abstractmethod
    def of_resamples(
        self, rows: Sequence[Tensor], counts: Tensor, real: Sequence[Tensor] | None, real_counts: Tensor | None
    ) -> Tensor:
        """The score [R] of each of R resamples: clip k stands counts[r,k] times in it (float64; `real_counts` too)."""

    def derivatives(self, rows: Sequence[Tensor], real: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """As `Score` says."""
        counts = [torch.ones(1, len(clips), dtype=torch.float64, requires_grad=True) for clips in (rows, real or ())]
        score = self.of_resamples(rows, counts[0], real, counts[1] if real is not None else None)
        return tuple(found[0] for found in torch.autograd.grad(score.sum(), counts[: 1 if real is None else 2]))

    def of_halves(
        self, rows: Sequence[Tensor], first: Tensor, real: Sequence[Tensor] | None, real_first: Tensor | None
    ) -> Tensor:
        """Scores [R,2] of the clips that `first` (bool [R,K]; `real_first` too) names, and of all others."""
        halves = [None if part is None else torch.cat([part, ~part]).double() for part in (first, real_first)]
        return self.of_resamples(rows, halves[0], real, halves[1]).reshape(2, -1).T

    def _flat(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """All rows [N,D], and which clip each is of [N]."""
        of = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(clip) for clip in rows]))
        return torch.cat([clip[:, self.first : self.last] for clip in rows]), of


class FrechetScore(SetScore):
    """FID, FVD: `weighted_frechet`. Biased upwards for small sets: compare equal counts only."""

    least: ClassVar[float] = 0.0
    alike: ClassVar[Literal["bias"]] = "bias"
    compares: ClassVar[Literal["sets"]] = "sets"
    better: ClassVar[Literal["lower"]] = "lower"

    def of_resamples(self, rows, counts, real, real_counts):
        (a, a_of), (b, b_of) = self._flat(rows), self._flat(real)
        return weighted_frechet(a, b, counts[:, a_of], real_counts[:, b_of])

    def derivatives(self, rows, real=None):
        (a, a_of), (b, b_of) = self._flat(rows), self._flat(real)
        sides = zip(frechet_derivatives(a, b), (a_of, b_of), (rows, real), strict=True)
        return tuple(torch.zeros(len(clips)).double().index_add_(0, of, found) for found, of, clips in sides)

    def of_halves(self, rows, first, real, real_first):
        (a, a_of), (b, b_of) = self._flat(rows), self._flat(real)
        if max(len(a), len(b)) > LARGE:
            first, real_first = first[:FEW], real_first[:FEW]
        return frechet_of_halves(a, b, first[:, a_of], real_first[:, b_of])


class KernelScore(SetScore):
    """KID, KVD: `weighted_mmd`, unbiased."""

    alike: ClassVar[float] = 0.0
    quick: ClassVar[bool] = True
    compares: ClassVar[Literal["sets"]] = "sets"
    better: ClassVar[Literal["lower"]] = "lower"

    def of_resamples(self, rows, counts, real, real_counts):
        (a, a_of), (b, b_of) = self._flat(rows), self._flat(real)
        return weighted_mmd(a, b, a_of, b_of, counts, real_counts)

    def derivatives(self, rows, real=None):
        (a, a_of), (b, b_of) = self._flat(rows), self._flat(real)
        return mmd_derivatives(a, b, a_of, b_of)


class JediScore(SetScore):
    """JEDi (Luo et al. 2025): 100 times the squared maximum mean discrepancy with the kernel (x y / D)^2, the biased
    estimate, in which each row meets itself, as the authors' code has it. So it is never below 0, and larger for fewer
    clips: compare equal counts only.
    """

    least: ClassVar[float] = 0.0
    alike: ClassVar[Literal["bias"]] = "bias"
    quick: ClassVar[bool] = True
    compares: ClassVar[Literal["sets"]] = "sets"
    better: ClassVar[Literal["lower"]] = "lower"

    def of_resamples(self, rows, counts, real, real_counts):
        (a, a_of), (b, b_of) = self._flat(rows), self._flat(real)
        x = torch.cat([a, b]).double()
        kernel = (x @ x.T / x.shape[1]).square()  # one product for all resamples
        shares = [each[:, of] / each[:, of].sum(1, keepdim=True) for each, of in ((counts, a_of), (real_counts, b_of))]
        weights = torch.cat([shares[0], -shares[1]], dim=1)  # [R,N+M]
        return 100 * ((weights @ kernel) * weights).sum(1)


class InceptionScore(SetScore):
    """exp(E KL(p(y|x) || p(y))) of a classifier's logits (Salimans et al. 2016).

    Of all rows at once: splitting them into ten parts, as older code does, only biases it (Barratt & Sharma 2018).
    """

    least: ClassVar[float] = 1.0
    compares: ClassVar[Literal["none"]] = "none"
    better: ClassVar[Literal["higher"]] = "higher"

    def of_resamples(self, rows, counts, real=None, real_counts=None):
        logits, of = self._flat(rows)
        log_p = logits.double().log_softmax(1)
        p, weights = log_p.exp(), counts[:, of]
        weights = weights / weights.sum(1, keepdim=True)
        marginal = weights @ p  # [R,D]
        entropy = torch.special.entr(marginal).sum(1)
        return (weights @ (p * log_p).sum(1) + entropy).exp()


SET_SCORES = (
    FrechetScore("fid", "inception", last=FEATURES),
    KernelScore("kid", "inception", last=FEATURES),
    InceptionScore("is", "inception", first=FEATURES),
    FrechetScore("fvd", "i3d"),
    KernelScore("kvd", "i3d"),
    InceptionScore("is_video", "i3d"),
    FrechetScore("cd_fvd", "videomae"),
    JediScore("jedi", "vjepa"),
)
