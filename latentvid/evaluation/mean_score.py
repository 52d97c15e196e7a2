"""Scores that are the mean over clips of a figure of each clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MeanScore:
    """A `Score`: of one clip the mean over its rows [n,D] of a column; every clip counts once."""

    name: str
    extractor: str
    compares: Literal["pairs", "none"]
    better: Literal["lower", "higher", "neither"]
    column: int = 0

    def of_clip(self, rows: Tensor) -> float:
        return float(rows[:, self.column].double().mean())

    def __call__(self, rows: Sequence[Tensor], real: Sequence[Tensor] | None = None) -> float:
        if not rows:
            raise ValueError(f"{self.name} of no clips: give the rows of at least one")
        return fmean(self.of_clip(clip) for clip in rows)

    def of_resamples(
        self,
        rows: Sequence[Tensor],
        counts: Tensor,
        real: Sequence[Tensor] | None = None,
        real_counts: Tensor | None = None,
    ) -> Tensor:
        """The means [R] over the clips of each resample: clip k stands counts[r,k] times in it, float64 [R,K]."""
        of_clips = torch.tensor([self.of_clip(clip) for clip in rows], dtype=torch.float64)
        return counts @ of_clips / counts.sum(1)
