"""A score with what it is worth: of how many clips, in what interval, and what real clips themselves would get.

Axes: K clips, L real clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..rng import generator
from .defaults import RESAMPLES
from .intervals import of_score
from .rows import Score
from .sets.scores import SetScore

Rows = Sequence[Tensor]
Files = Sequence[int]

FLOORS = {
    "sets": "two parts of the real clips",
    "none": "the real clips",
    "pairs": "real clips against other real clips",
}


@dataclass(frozen=True)
class Result:
    """A score of `count` clips. low, high: its 95 % interval, None where there are too few files or none was wanted.

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


def numbered(names: Sequence[object]) -> list[int]:
    """The same number for the same name, 0 for the first."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


def as_many(name: str, drawn: list[tuple[Rows, Files]], notes: list[str]) -> list[tuple[Rows, Files]]:
    """As many clips (rows, and file of each) of both sets, where some of one cannot be used: evenly from the larger."""
    counts = [len(rows) for rows, _ in drawn]
    count = min(counts)
    if counts[0] == counts[1] or not count:
        return drawn
    notes.append(f"{name}: {counts[0]} clips and {counts[1]} real ones could be used, {count} of each are compared")
    kept = [[(2 * i + 1) * n // (2 * count) for i in range(count)] for n in counts]
    return [tuple([each[k] for k in places] for each in pair) for pair, places in zip(drawn, kept, strict=True)]


def parts(files: Files, count: int) -> tuple[list[int], list[int]]:
    """Places of clips in two parts that share no file, of `count` clips each, or of as many as both can have.

    files: of each clip.
    """
    of_file: dict[int, list[int]] = {}
    for place, file in enumerate(files):
        of_file.setdefault(file, []).append(place)
    found: tuple[list[int], list[int]] = ([], [])
    for file in _shuffled(sorted(of_file)):
        smaller = min(found, key=len)
        if len(smaller) < count:
            smaller += of_file[file]
    count = min(count, *map(len, found))
    return found[0][:count], found[1][:count]


def summarise_one(
    score: Score,
    rows: Rows,
    real: Rows | None,
    resamples: int = RESAMPLES,
    files: Files | None = None,
    real_files: Files | None = None,
) -> Result:
    """rows: of each clip. real: of each real clip (of a score of pairs: of each real clip with another one).

    resamples: 0 for no interval. files, real_files: the file of each clip, by any number; None: each has its own.
    Raises UserError where there are too few clips, ValueError where real ones lack.
    """
    if not rows:
        raise UserError(f"{score.name}: there is no clip to score")
    if score.compares == "sets" and not real:
        raise ValueError(f"{score.name} compares with real clips: give their rows")
    against = real if score.compares == "sets" else None
    value = score(rows, against)
    files = numbered(range(len(rows)) if files is None else files)
    real_files = None if real is None else numbered(range(len(real)) if real_files is None else real_files)
    low, high = _interval(score, value, (rows, files, against, real_files), resamples)
    floor, floor_count = _floor(score, real, real_files, len(rows))
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


def _interval(score: Score, value: float, drawn: tuple, resamples: int) -> tuple[float | None, float | None]:
    found = of_score(score, *drawn, resamples) if resamples else None
    if found is None:
        return None, None
    return found.interval(value, getattr(score, "least", -math.inf), getattr(score, "alike", None))


def _floor(score: Score, real: Rows | None, files: Files | None, count: int) -> tuple[float | None, int | None]:
    if not real:
        return None, None
    if score.compares != "sets":
        if isinstance(score, SetScore):  # of as many, since their number pulls it
            real = [real[k] for k in _shuffled(range(len(real)))[:count]]
        return score(real), len(real)
    first, second = ([real[k] for k in part] for part in parts(files, count))
    if sum(len(rows) for rows in second) < 2:
        return None, None
    return score(first, second), len(first)


def _shuffled(items: Sequence[int]) -> list[int]:
    order = torch.randperm(len(items), generator=generator(0, 0, "parts of the real clips"))
    return [items[k] for k in order.tolist()]


def summarise(
    scores: Mapping[str, Score],
    rows: Mapping[str, Rows],
    real: Mapping[str, Rows] | None = None,
    *,
    resamples: int = RESAMPLES,
    files: Files | None = None,
) -> dict[str, dict[str, Any]]:
    """`Result` as a dict by the score's name. rows, real: by extractor, of each clip; see `summarise_one`.

    files: of each real clip.
    """
    real = real or {}
    return {
        name: asdict(summarise_one(score, rows[score.extractor], real.get(score.extractor), resamples, None, files))
        for name, score in scores.items()
    }
