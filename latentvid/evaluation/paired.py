"""Two models compared clip by clip: the same prompt and seed in both, so that what prompts differ in cancels.

Pairs of one prompt are alike: prompts are the units that are swapped and halved, files where there are no prompts.
Axes: K pairs, U units, R halvings.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..data.manifest.tables import READERS
from ..errors import UserError
from ..rng import generator
from .clip_folder import INDEX, NAMES, ClipSet, Item, list_clips, paired
from .footage import Cut
from .guards import unlike
from .intervals import FEWEST, Spread, by_file, halvings, spread
from .row_cache import Found
from .rows import Score
from .sets.scores import SetScore
from .summary import Files, Rows, numbered

SWAPS = 10_000  # of the test, where there are too many units for all
EXACT = 13  # units, up to which all 2^U swaps are made


@dataclass(frozen=True)
class Difference:
    """The score of the clips less that of the others, over `pairs` pairs of `units` prompts (or files).

    low, high: its 95 % interval. p: two-sided, that chance makes such a difference between models that are equal.
    effect: Cohen's d_z, the mean difference in standard deviations of the pairs' differences; wins: the share of pairs
    in which the clips are better (where neither is: have more), ties half. Both are None of scores of sets. relative:
    the difference in parts of the others' score; None where that is not above 0. None, too, is what too few units leave
    open.
    """

    value: float
    other: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    effect: float | None
    wins: float | None
    relative: float | None
    pairs: int
    units: int
    better: Literal["lower", "higher", "neither"]


def seeds_of(source: Path) -> dict[str, int]:
    """Seeds by name, of the index that the sampler leaves in a folder of clips; empty where there is none."""
    if not (source / INDEX).is_file():
        return {}
    found = {}
    for _, row in READERS[Path(INDEX).suffix](str(source / INDEX), (*NAMES, "seed"), ()):
        name = next((row[column] for column in NAMES if row.get(column)), None)
        if isinstance(name, str) and isinstance(row.get("seed"), int):
            found[os.path.normpath(name)] = row["seed"]
    return found


def partners(
    clips: ClipSet,
    against: Path,
    real: Path | None,
    cut: Cut,
    most: int | None,
    captions: Path | None,
    allow: Collection[str],
    *,
    stated: bool,
) -> tuple[ClipSet, list[tuple[int, int, str]]]:
    """The other model's clips, with their real ones, and which two make a pair (`match`).

    stated: whether a length of clips was asked for. Raises UserError for sets that differ in a way that is not allowed.
    """
    others = list_clips(against, cut, most, captions)
    apart = unlike(clips, others, stated=stated)
    for name in ("rate", "size", "length"):
        if name in apart and name not in allow:
            raise UserError(f"{clips.source} and {against} do not compare: {apart[name]}")
    if real is not None:
        others = paired(others, real, cut, {*allow, *(("length",) if stated else ())})
    return others, match(clips.items, others.items, (seeds_of(clips.source), seeds_of(against)))


def match(
    first: Sequence[Item], second: Sequence[Item], seeds: Sequence[Mapping[str, int]] = ({}, {})
) -> list[tuple[int, int, str]]:
    """Places of the two clips of each pair, and the unit that it belongs to.

    By prompt and seed where every clip of both sets has them (and one prompt and seed is not there twice), else by name
    without its ending; then prompts, where both have one, must be equal.
    Raises UserError where no two clips make a pair, or clips of one name have unlike prompts.
    """
    keys = [_by_prompt(items, named) for items, named in zip((first, second), seeds, strict=True)]
    if None in keys:
        keys = [{(os.path.splitext(item.name)[0], item.excerpt.start): k for k, item in enumerate(items)}
                for items in (first, second)]  # fmt: skip
    pairs = []
    for key, place in keys[0].items():
        if (other := keys[1].get(key)) is None:
            continue
        texts = first[place].caption, second[other].caption
        if None not in texts and texts[0] != texts[1]:
            raise UserError(
                f"{first[place].name} has the prompt {texts[0]!r} in one set and {texts[1]!r} in the other: compare "
                "clips of the same prompts"
            )
        pairs.append((place, other, texts[0] or texts[1] or os.path.splitext(first[place].name)[0]))
    if not pairs:
        raise UserError(
            f"no clip of one set has a partner in the other, such as {first[0].name} and {second[0].name}: pairs have "
            f"the same prompt and seed in {INDEX}, or the same name"
        )
    return pairs


def _by_prompt(items: Sequence[Item], seeds: Mapping[str, int]) -> dict[tuple, int] | None:
    found: dict[tuple, int] = {}
    for k, item in enumerate(items):
        seed = seeds.get(os.path.normpath(item.name))
        key = (item.caption, seed, item.excerpt.start)
        if item.caption is None or seed is None or key in found:
            return None
        found[key] = k
    return found


def rows_of_pairs(
    pairs: Sequence[tuple[int, int, str]], items: Sequence[Sequence[Item]], found: Sequence[Found]
) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """Of the pairs (`match` of both `items`) of which both clips have rows: those of the first, of the second, and the
    units. Raises UserError where there is none."""
    own, others = ({id(item): rows for item, rows in zip(each.items, each.rows, strict=True)} for each in found)
    kept = []
    for a, b, unit in pairs:
        rows = own.get(id(items[0][a])), others.get(id(items[1][b]))
        if rows[0] is not None and rows[1] is not None:
            kept.append((*rows, unit))
    if not kept:
        raise UserError("there is no pair of which both clips can be used")
    return tuple(map(list, zip(*kept, strict=True)))


def compare_one(
    score: Score,
    rows: Rows,
    others: Rows,
    units: Files,
    real: Rows | None = None,
    real_files: Files | None = None,
    resamples: int = 0,
) -> Difference:
    """rows, others: of the two clips of each pair. units: of each pair, by any number. real, real_files: as in
    `summarise_one`. resamples: halvings, for scores of sets; 0 for no interval and no test of those."""
    if len(rows) != len(others) or not rows:
        raise ValueError(f"{len(rows)} and {len(others)} clips are no pairs: give as many of both")
    units = numbered(units)
    count = max(units) + 1
    against = real if score.compares == "sets" else None
    files = None if against is None else numbered(range(len(real)) if real_files is None else real_files)
    if not isinstance(score, SetScore):
        return compare_values(*([score.of_clip(clip) for clip in each] for each in (rows, others)), units, score.better)
    value, other, found, p = score(rows, against), score(others, against), None, None
    if resamples and min([count] if files is None else [count, max(files) + 1]) >= FEWEST:
        found = _of_sets(score, rows, others, units, against, files, resamples)
        p = found.p(value - other)
    return _difference(value, other, found, p, None, None, len(rows), count, score.better)


def compare_values(
    values: Sequence[float], others: Sequence[float], units: Files, better: Literal["lower", "higher", "neither"]
) -> Difference:
    """Of scores of single clips: those of both clips of each pair. units: of each pair, 0..U - 1."""
    first, second = (torch.tensor(each, dtype=torch.float64) for each in (values, others))
    each, count, found, p = first - second, max(units) + 1, None, None
    if count > 1:
        found = spread([by_file((each - each.mean()) / len(each), units)])
        p = swapped(by_file(each, units))
    effect, wins = cohens_dz(each), _wins(each, better)
    return _difference(float(first.mean()), float(second.mean()), found, p, effect, wins, len(each), count, better)


def _difference(
    value: float,
    other: float,
    found: Spread | None,
    p: float | None,
    effect: float | None,
    wins: float | None,
    pairs: int,
    units: int,
    better: Literal["lower", "higher", "neither"],
) -> Difference:
    low, high = (None, None) if found is None else found.around(value - other)
    relative = (value - other) / other if other > 0 else None
    return Difference(value, other, value - other, low, high, p, effect, wins, relative, pairs, units, better)


def _of_sets(
    score: SetScore, rows: Rows, others: Rows, units: Files, real: Rows | None, files: Files | None, resamples: int
) -> Spread:
    """Both sets are halved alike, and so are the real clips that both are compared with."""
    sides = [score.derivatives(each, real) for each in (rows, others)]
    sets = [by_file(a - b, of) for a, b, of in zip(*sides, (units, files), strict=False)]
    first, real_first = (
        None if of is None else halvings(max(of) + 1, resamples, purpose)[:, torch.as_tensor(of)]
        for of, purpose in ((units, "clips"), (files, "real"))
    )
    halves = [score.of_halves(each, first, real, real_first) for each in (rows, others)]
    return spread(sets, halves[0] - halves[1])


def swapped(sums: Tensor) -> float:
    """Two-sided p of a sum of differences by unit [U], if in each the two models might as well be swapped (Fisher's
    randomisation test; Good 2005): of all swaps, or of `SWAPS` drawn ones, the share that is no smaller."""
    units, most = len(sums), abs(float(sums.sum())) * (1 - 1e-9)
    if units <= EXACT:
        signs = 1 - 2 * (torch.arange(2**units)[:, None] >> torch.arange(units) & 1).double()
        return float(((signs @ sums).abs() >= most).double().mean())
    signs = 1 - 2 * torch.randint(2, (SWAPS, units), generator=generator(0, 0, "swapped pairs")).double()
    return float(((signs @ sums).abs() >= most).sum() + 1) / (SWAPS + 1)


def cohens_dz(differences: Tensor) -> float | None:
    """Mean over standard deviation (Cohen 1988, section 2.3.5); None where all are equal, or of one."""
    if len(differences) < 2 or not (deviation := float(differences.std())) > 0:
        return None
    found = float(differences.mean()) / deviation
    return found if math.isfinite(found) else None


def _wins(differences: Tensor, better: str) -> float:
    signs = differences.sign() * (-1 if better == "lower" else 1)
    return float((1 + signs).mean() / 2)
