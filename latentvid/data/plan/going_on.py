"""Going on from a place in the data where packs are others than they were, or samples were appended since.

The plan as it was is made again, and goes to the saved place. What its window would still have handed out is carried
into a new window, so each sample is still drawn once an epoch, under its own global number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import UserError
from .source import Source, Stream, single

if TYPE_CHECKING:
    from .plan import Plan

APPENDED = " (there are more than there were: data.may_grow takes in those that stand after all that were there)"
PACKS = ("data.tokens_per_pack", "data.packs_per_step")


def samples_then(state: Mapping[str, Any], parts: Sequence[int]) -> tuple[int, ...] | None:
    """Of each part of the data set (which has so many samples now), how many there were; None where some went, and
    where an older version did not note it."""
    then = tuple(state.get("parts") or ([state["samples"]] if len(parts) == 1 else parts))
    fits = len(then) == len(parts) and all(t <= n for t, n in zip(then, parts, strict=True))
    return then if fits and sum(then) == state["samples"] else None


def first_of(parts: Sequence[int], counts: Sequence[int]) -> np.ndarray:
    """Ascending numbers of the first so many samples of each part."""
    starts = np.cumsum([0, *parts])
    return np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=False)])


def members(source: Source, sizes: np.ndarray) -> np.ndarray:
    """All samples of a stream, ascending."""
    if single(sizes):
        return source.index
    read = np.cumsum(sizes > 0) - 1  # of each sample
    return np.flatnonzero(np.isin(read, read[source.index]))


def plan_as_it_was(plan: Plan, state: Mapping[str, Any], known: np.ndarray) -> Plan:
    """The plan with the packs that a state names, of those samples alone."""
    packing = state["packing"]
    reads = None
    if not single(plan.sizes):
        reads = np.unique((np.cumsum(plan.sizes > 0) - 1)[known], return_inverse=True)[1]
    streams = []
    for source, weight in zip(plan.sources, plan.weights, strict=True):
        index = members(source, plan.sizes)
        streams.append(Stream(np.searchsorted(known, index[np.isin(index, known)]), weight, source.name))
    try:
        return type(plan)(
            plan.tokens[known],
            budget=packing.get(PACKS[0], plan.budget),
            packs=packing.get(PACKS[1], plan.packs),
            seed=plan.seed,
            cost=plan.cost[known],
            streams=streams,
            reads=reads,
            parts=samples_then(state, plan.parts),
        )
    except UserError:
        raise
    except ValueError as error:  # reads that the packs of then have no room for
        raise UserError(
            f"the windows that are read together now were not when this run began ({error}): set data.frames_per_read "
            "and data.tokens_per_pack back, or start a new run.dir"
        ) from None


def take_over(plan: Plan, was: Plan, known: np.ndarray) -> list[tuple[int, int, int]]:
    """Puts the plan's streams where those of `was` are, and gives the draws (number, index, stream) that it had planned
    and not handed out. known: the number here of each of its samples."""
    stream_of = np.zeros(len(was.tokens), np.int64)
    for number, source in enumerate(was.sources):
        stream_of[source.index] = number
    left = [draw for step in was.steps_left() for pack in step.packs for draw in pack if was.sizes[draw.index]]
    plan.begin_at(was.first)
    carried = sorted([*was.carried, *((number, index, int(stream_of[index])) for number, index in left)])
    for mine, theirs in zip(plan.sources, was.sources, strict=True):
        mine.drawn, mine.tokens = theirs.drawn, theirs.tokens
        unfinished(plan, mine, theirs.whole_from, theirs.passed, theirs.had)
        if mine.samples > theirs.samples:
            mine.appended(*theirs.place(), was.parts, known[members(theirs, was.sizes)])
    return [(number, int(known[index]), stream) for number, index, stream in carried]


def unfinished(plan: Plan, source: Source, whole_from: int, passed: int, had: Sequence[int] | None) -> None:
    """Restores a stream's epoch that is of the first so many samples of each part alone."""
    before = None
    if had is not None and source.drawn < whole_from:
        index = members(source, plan.sizes)
        before = index[np.isin(index, first_of(plan.parts, had))]
    source.restore(whole_from, passed, had, before)
