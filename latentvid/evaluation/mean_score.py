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

    def derivatives(self, rows: Sequence[Tensor], real: Sequence[Tensor] | None = None) -> tuple[Tensor]:
        """As `Score` says."""
        of_clips = torch.tensor([self.of_clip(clip) for clip in rows], dtype=torch.float64)
        return ((of_clips - of_clips.mean()) / len(of_clips),)
