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

from .frechet import weighted_frechet
from .inception import FEATURES
from .kernel_distance import weighted_mmd


@dataclass(frozen=True)
class SetScore(ABC):
    """Of the rows' columns `first` to `last` (beyond it; None: the end)."""

    name: str
    extractor: str
    first: int = 0
    last: int | None = None
    least: ClassVar[float] = -math.inf  # no score is below, so no interval reaches there

    def __call__(self, rows: Sequence[Tensor], real: Sequence[Tensor] | None = None) -> float:
        once = [None if clips is None else torch.ones(1, len(clips), dtype=torch.float64) for clips in (rows, real)]
        return float(self.of_resamples(rows, once[0], real, once[1]))

    @abstractmethod
    def of_resamples(
        self, rows: Sequence[Tensor], counts: Tensor, real: Sequence[Tensor] | None, real_counts: Tensor | None
    ) -> Tensor:
        """The score [R] of each resample, as `Score` says."""

    def _flat(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """All rows [N,D], and which clip each is of [N]."""
        of = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(clip) for clip in rows]))
        return torch.cat([clip[:, self.first : self.last] for clip in rows]), of


class FrechetScore(SetScore):
    """FID, FVD: `weighted_frechet`. Biased upwards for small sets: compare equal counts only."""

    least: ClassVar[float] = 0.0
    compares: ClassVar[Literal["sets"]] = "sets"
    better: ClassVar[Literal["lower"]] = "lower"

    def of_resamples(self, rows, counts, real, real_counts):
        (a, a_of), (b, b_of) = self._flat(rows), self._flat(real)
        return weighted_frechet(a, b, counts[:, a_of], real_counts[:, b_of])


class KernelScore(SetScore):
    """KID, KVD: `weighted_mmd`, unbiased."""

    compares: ClassVar[Literal["sets"]] = "sets"
    better: ClassVar[Literal["lower"]] = "lower"

    def of_resamples(self, rows, counts, real, real_counts):
        (a, a_of), (b, b_of) = self._flat(rows), self._flat(real)
        return weighted_mmd(a, b, a_of, b_of, counts, real_counts)


class JediScore(SetScore):
    """JEDi (Luo et al. 2025): 100 times the squared maximum mean discrepancy with the kernel (x y / D)^2, the biased
    estimate, in which each row meets itself, as the authors' code has it. So it is never below 0, and larger for fewer
    clips: compare equal counts only.
    """

    least: ClassVar[float] = 0.0
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
