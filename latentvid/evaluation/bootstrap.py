"""A score with what it is worth: of how many clips, in what interval, and what real clips themselves would get.

Intervals are bootstrap percentile intervals (Efron & Tibshirani 1993, chapter 13): clips, never the frames of a clip
apart, are drawn with repetition, and the score of each resample shows how far another sample of clips might have come
out. Resampling pulls scores of whole sets to one side: a resample holds about 63 % of the clips, and small sets are
further apart (Binkowski et al. 2018, Chong & Forsyth 2020). How far is what the mean of the resampled scores lies off
the score (the bootstrap's estimate of bias, Efron & Tibshirani chapter 10): their quantiles are moved back by it.
Axes: K clips, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..rng import generator
from .defaults import RESAMPLES
from .rows import Score
from .sets.scores import SetScore

Rows = Sequence[Tensor]

LEVEL = 0.95
FLOORS = {
    "sets": "two parts of the real clips",
    "none": "the real clips",
    "pairs": "real clips against other real clips",
}


@dataclass(frozen=True)
class Result:
    """A score of `count` clips. low, high: its 95 % interval, None where there was no bootstrap.

    real_count: clips that it was compared with (None where it compares no sets). floor: the score of real against
    real, as `floor_of` says, of `floor_count` clips (of two parts: in each); None where there are too few.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    real_count: int | None
    floor: float | None
    floor_count: int | None
    floor_of: str | None
    better: str


def draws(clips: int, resamples: int, purpose: str) -> Tensor:
    """float64 [R,K]: how often each clip stands in each resample of as many; the same for the same arguments.

    No resample is one clip alone (where there are more): a set of copies has no spread to compare.
    """
    found = torch.empty(resamples, clips, dtype=torch.float64)
    for r in range(resamples):
        random = generator(0, r, f"bootstrap {purpose}")
        found[r] = clips
        while (found[r] > 0).sum() < min(2, clips) or found[r].sum() > clips:
            found[r] = torch.bincount(torch.randint(clips, (clips,), generator=random), minlength=clips)
    return found


def interval(score: Score, value: float, rows: Rows, real: Rows | None, resamples: int) -> tuple[float, float]:
    """(low, high) of a score whose value is known."""
    counts = draws(len(rows), resamples, "clips")
    found = score.of_resamples(rows, counts, real, None if real is None else draws(len(real), resamples, "real"))
    if isinstance(score, SetScore):
        found = (found - found.mean() + value).clamp_min(score.least)
    edge = (1 - LEVEL) / 2
    low, high = torch.quantile(found, torch.tensor([edge, 1 - edge], dtype=torch.float64)).tolist()
    return low, high


def halves(real: Rows, count: int) -> tuple[Rows, Rows]:
    """Two parts of the real clips that share none, of `count` clips each, or of half of them where there are fewer."""
    order = _shuffled(len(real))
    count = min(count, len(real) // 2)
    return [real[k] for k in order[:count]], [real[k] for k in order[count : 2 * count]]


def summarise_one(score: Score, rows: Rows, real: Rows | None, resamples: int = RESAMPLES) -> Result:
    """rows: of each clip. real: of each real clip (of a score of pairs: of each real clip with another one).

    resamples: 0 for no interval. Raises UserError where there are too few clips, ValueError where real ones lack.
    """
    if not rows:
        raise UserError(f"{score.name}: there is no clip to score")
    if score.compares == "sets" and not real:
        raise ValueError(f"{score.name} compares with real clips: give their rows")
    against = real if score.compares == "sets" else None
    value = score(rows, against)
    low, high = interval(score, value, rows, against, resamples) if resamples and len(rows) > 1 else (None, None)
    floor, floor_count = _floor(score, real, len(rows))
    return Result(
        value=value,
        low=low,
        high=high,
        count=len(rows),
        real_count=len(against) if against else None,
        floor=floor,
        floor_count=floor_count,
        floor_of=None if floor is None else FLOORS[score.compares],
        better=score.better,
    )


def _floor(score: Score, real: Rows | None, count: int) -> tuple[float | None, int | None]:
    if not real:
        return None, None
    if score.compares != "sets":
        if isinstance(score, SetScore):  # of as many, since their number pulls it
            real = [real[k] for k in _shuffled(len(real))[:count]]
        return score(real), len(real)
    parts = halves(real, count)
    if sum(len(rows) for rows in parts[1]) < 2:
        return None, None
    return score(*parts), len(parts[0])


def _shuffled(count: int) -> list[int]:
    return torch.randperm(count, generator=generator(0, 0, "parts of the real clips")).tolist()


def summarise(
    scores: Mapping[str, Score],
    rows: Mapping[str, Rows],
    real: Mapping[str, Rows] | None = None,
    *,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, Any]]:
    """`Result` as a dict by the score's name. rows, real: by extractor, of each clip; see `summarise_one`."""
    real = real or {}
    return {
        name: asdict(summarise_one(score, rows[score.extractor], real.get(score.extractor), resamples))
        for name, score in scores.items()
    }
