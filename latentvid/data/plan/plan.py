"""Which samples make up each training step: a small state machine, the same on every rank and world size.

A step is G packs of at most `budget` tokens, filled with whole samples, which cost nearly the same within a step, so
that no rank waits for another. Samples are drawn in a new random order each epoch; the n-th draw of a run has the
global sample number n, to which all randomness is keyed. Samples that come from one read of a file (`reads`) are drawn
one after another and share a pack; below, such a group counts as one draw, known by its first sample.

Steps are planned a window at a time. A window's draws are placed, dearest first, each into the cheapest pack with room
for it (longest processing time first); the packs, sorted by cost, are cut into steps of neighbours, whose order is then
shuffled. Draws that found no room are placed first in the next window, so none waits longer than that: were P packs
left with P or more draws over, each of s tokens or more, then the packs had less than s tokens of room each, and the
window had been given more tokens than it holds. (So each of those gets a pack of its own, at worst.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import UserError
from .going_on import APPENDED, PACKS, first_of, plan_as_it_was, samples_then, take_over, unfinished
from .placing import place
from .saved import check_whole, identify, numbers_before, others, refuse_other
from .source import STEPS, Source, Stream, numbered
from .step import Draw, Step

WINDOW_PACKS = 1024  # packs planned together: more balance better, and may leave as many draws in the saved state
WINDOW_STEPS = 8  # but no fewer steps than this
PER_SAMPLE = ("tokens", "costs", "source_of", "is_image")  # what a task keeps of each sample for its plan
MOST_DRAWS = 2**16  # of a step, where the data set has fewer samples: planning takes some 10 us each


class Plan:
    """Endless sequence of steps.

    Args:
        tokens: tokens of each sample of the data set.
        budget: tokens a pack holds at most.
        packs: G, packs of a step over all ranks and accumulation.
        seed: of the epochs' orders.
        cost: of each sample, in any unit; the tokens if not given. For a transformer of width d, whose linear layers
            take 24 n d^2 and attention 4 n^2 d operations a block, it is n + n^2 / 6d.
        streams: the sources to mix, by weights in tokens; all samples as one if not given. The tokens drawn from
            each stay within a read or two of its share at all times.
        reads: of each sample, ascending from 0: samples of the same number share a pack. Each for itself if not given.
        parts: samples of each part of the data set, in their order, to which some may be appended; one if not given.

    Raises UserError where there is nothing to plan, a sample is larger than a pack, a step holds the data set many
    times, or a stream is empty or has no weight; ValueError where `reads` are none, or a read is larger than a pack or
    lies in two streams.
    """

    def __init__(
        self,
        tokens: Sequence[int] | np.ndarray,
        *,
        budget: int,
        packs: int,
        seed: int,
        cost: np.ndarray | None = None,
        streams: Sequence[Stream] | None = None,
        reads: np.ndarray | None = None,
        parts: Sequence[int] | None = None,
    ) -> None:
        if not len(tokens):
            raise UserError("the data set is empty: no sample is left to train on")
        if packs < 1:
            raise UserError(f"data.packs_per_step is {packs}: it must be at least 1")
        self.tokens = np.asarray(tokens, dtype=np.int64)
        self.cost = self.tokens.astype(np.float64) if cost is None else np.asarray(cost, dtype=np.float64)
        self.budget, self.packs, self.seed = budget, packs, seed
        streams = [Stream(np.arange(len(tokens)), 1.0)] if streams is None else list(streams)
        self._check(streams)
        self._group(reads, streams)
        self.parts = (len(self.tokens),) if parts is None else tuple(parts)
        self.weights = [stream.weight for stream in streams]
        total = sum(self.weights)
        self._bound_a_step(streams)
        self.sources = [Source(s._replace(weight=s.weight / total), self.sizes, seed, n) for n, s in enumerate(streams)]
        self._samples = sum(source.samples for source in self.sources)
        steps = sum(int(self._read_tokens[source.index].sum()) for source in self.sources) // (packs * budget)
        # not more than an epoch, or one of a small data set would mix with the next ones
        self.lookahead = max(1, min(steps, max(WINDOW_STEPS, WINDOW_PACKS // packs)))  # steps of a window
        self._identity = identify(
            self.tokens,
            self.cost,
            self.sizes,
            [part for source in self.sources for part in (source.index, np.array([source.weight]))],
            {
                "data.tokens_per_pack": budget,
                "data.packs_per_step": packs,
                "run.seed": seed,
                "lookahead": self.lookahead,
            },
        )
        self.first = 0  # global sample number of the first draw
        self._window = 0  # windows planned so far
        self.carried: list[tuple[int, int, int]] = []  # (number, index, stream) of draws for the next window
        self._start = self._counters()
        self._steps: list[Step] = []  # of the window
        self._given = self._per_stream([])  # [steps + 1, streams]: draws handed out before each step of the window
        self._place = 0  # steps of the window handed out

    def _check(self, streams: list[Stream]) -> None:
        if self.tokens.min() < 1:
            raise UserError(f"sample {int(self.tokens.argmin())} of the data set has no tokens: leave it out")
        if self.cost.shape != self.tokens.shape or not (np.isfinite(self.cost) & (self.cost > 0)).all():
            raise UserError(f"each of the {len(self.tokens)} samples needs one cost, finite and above 0")
        if not streams:
            raise UserError("there is no source of data to draw from: name at least one, or none to take all samples")
        for n, (index, weight, _) in enumerate(streams):
            if not len(index):
                raise UserError(f"source {n} of the data has no sample left: mend it, or take it out of the mix")
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(f"source {n} of the data has weight {weight}: it must be above 0")
            if np.min(index) < 0 or np.max(index) >= len(self.tokens):
                raise UserError(f"source {n} of the data names a sample outside 0 to {len(self.tokens) - 1}")
        largest = max(int(self.tokens[stream.index].max()) for stream in streams)
        if largest > self.budget:
            raise UserError(
                f"a pack holds {self.budget} tokens but the largest sample has {largest}: "
                "raise data.tokens_per_pack, or lower data.max_frames or data.max_area"
            )

    def _group(self, reads: np.ndarray | None, streams: list[Stream]) -> None:
        """Samples, tokens and cost of the read that begins with each sample; 0 for those that begin none."""
        if reads is None:
            self.sizes = np.broadcast_to(np.int64(1), self.tokens.shape)  # no memory of its own
            self._read_tokens, self._read_cost = self.tokens, self.cost
            self._largest = max(int(self.tokens[stream.index].max()) for stream in streams)
            return
        reads = np.asarray(reads)
        if reads.shape != self.tokens.shape or reads[0] != 0 or not np.isin(np.diff(reads), (0, 1)).all():
            raise ValueError(f"reads must number {len(self.tokens)} samples, ascending from 0 without gaps")
        first = np.flatnonzero(np.diff(reads, prepend=-1))
        lengths = np.diff(first, append=len(reads))
        self.sizes, self._read_tokens = np.zeros((2, len(reads)), np.int32)
        self._read_cost = np.zeros(len(reads))
        self.sizes[first] = lengths
        for of_read, values in ((self._read_tokens, self.tokens), (self._read_cost, self.cost)):
            of_read[first] = np.add.reduceat(values, first)
        for stream in streams:
            if lengths[np.unique(reads[stream.index])].sum() != len(stream.index):
                raise ValueError("each read must lie in one stream as a whole")
        self._largest = max(int(self._read_tokens[stream.index].max()) for stream in streams)
        if self._largest > self.budget:
            raise ValueError(f"a pack holds {self.budget} tokens but the largest read has {self._largest}")

    def _bound_a_step(self, streams: list[Stream]) -> None:
        """Refuses a step of more draws than can be planned in moments, unless the data set is as large."""
        samples = sum(len(stream.index) for stream in streams)
        tokens = sum(int(self.tokens[stream.index].sum()) for stream in streams)
        draws = self.packs * self.budget * samples // tokens
        if draws > max(MOST_DRAWS, samples):
            raise UserError(
                f"a step of data.packs_per_step={self.packs:,} packs of data.tokens_per_pack={self.budget:,} tokens "
                f"would draw the {samples:,} samples {draws / samples:,.0f} times over ({draws:,} draws): lower one of "
                "them"
            )

    def __deepcopy__(self, memo: dict) -> Plan:
        """The same place in the same data, to go on from by itself; what never changes is shared."""
        twin = copy.copy(self)
        twin.sources = [copy.copy(source) for source in self.sources]
        return twin

    # --- steps ---

    def next(self) -> Step:
        """The next step; every pack holds at least one sample."""
        if self._place == len(self._steps):
            self._plan_window()
        step = self._steps[self._place]
        self._place += 1
        return step

    @property
    def epoch(self) -> float:
        """Passes over the samples of all streams together, in the steps handed out so far."""
        done = (source.done(given) for given, source in zip(self._handed_out(), self.sources, strict=True))
        return sum(done) / self._samples

    @property
    def names(self) -> list[str]:
        """Of the streams, in the order of `epochs`."""
        return [source.name for source in self.sources]

    @property
    def epochs(self) -> list[float]:
        """Passes over each stream, in the steps handed out so far."""
        handed_out = zip(self._handed_out(), self.sources, strict=True)
        return [source.done(given) / source.samples for given, source in handed_out]

    def _handed_out(self) -> list[int]:
        return self._given[self._place].tolist()

    def _plan_window(self) -> None:
        self._start = self._counters()
        first = len(self.carried)
        handed_out = self._per_stream(self.carried)[0]
        draws = self.carried + self._draw()
        index = [index for _, index, _ in draws]
        tokens, cost, sizes = (a[index].tolist() for a in (self._read_tokens, self._read_cost, self.sizes))
        order = sorted(range(len(draws)), key=lambda i: (i >= first, -cost[i]))
        packs, left = place(order, tokens, cost, packs=self.packs * self.lookahead, budget=self.budget)
        self.carried = [draws[i] for i in sorted(left)]
        sums = [sum(cost[i] for i in pack) for pack in packs]
        dearest = sorted(range(len(packs)), key=lambda p: -sums[p])
        key = numbered((self.seed, STEPS, self._window), self.first)
        shuffled = np.random.default_rng(key).permutation(self.lookahead).tolist()
        self._steps, counts = [], [handed_out]
        for n in shuffled:
            chosen = dearest[n * self.packs : (n + 1) * self.packs]
            members = [i for p in chosen for i in packs[p]]
            self._steps.append(
                Step(
                    packs=tuple(
                        tuple(Draw(draws[i][0] + n, draws[i][1] + n) for i in sorted(packs[p]) for n in range(sizes[i]))
                        for p in chosen
                    ),
                    samples=sum(sizes[i] for i in members),
                    tokens=sum(tokens[i] for i in members),
                    costs=tuple(sums[p] for p in chosen),
                    budget=self.budget,
                )
            )
            counts.append(self._count([draws[i] for i in members]))
        self._given = np.cumsum(counts, axis=0)
        self._window += 1
        self._place = 0

    def _draw(self) -> list[tuple[int, int, int]]:
        """New draws for a window: with the carried ones as many tokens as its packs hold, so at least one a pack."""
        room = self.packs * self.lookahead * self.budget
        room -= sum(int(self._read_tokens[index]) for _, index, _ in self.carried)
        number = self._numbers()
        total = sum(source.tokens for source in self.sources)
        draws = []
        while True:
            # of the streams not ahead of their share, the one that would first be a whole read behind it
            n, source = min(
                enumerate(self.sources),
                key=lambda s: (s[1].tokens > s[1].weight * total, (s[1].tokens + self._largest) / s[1].weight),
            )
            index = source.peek()
            tokens, size = int(self._read_tokens[index]), int(self.sizes[index])
            if tokens > room:
                return draws
            draws.append((number, index, n))
            source.drawn += size
            source.tokens += tokens
            number, total, room = number + size, total + tokens, room - tokens

    def _numbers(self) -> int:
        """Global sample numbers given so far, in the whole run."""
        return self.first + sum(source.drawn for source in self.sources)

    def _count(self, draws: list[tuple[int, int, int]]) -> np.ndarray:
        """[streams]: the samples of these draws."""
        counts = np.zeros(len(self.sources), np.int64)
        for _, index, stream in draws:
            counts[stream] += self.sizes[index]
        return counts

    def _per_stream(self, draws: list[tuple[int, int, int]]) -> np.ndarray:
        """[1, streams]: samples drawn so far but for those of `draws`."""
        return np.array([[source.drawn for source in self.sources]]) - self._count(draws)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here, as plain JSON values: where the window began, and the place in it."""
        later = {"first": self.first} if self.first else {}
        place = {"parts": list(self.parts), **self._start, "place": self._place}
        return {**self._identity, **place, "numbers": self._numbers(), **later}

    def load_state_dict(self, state: dict[str, Any], may_grow: bool = False) -> None:
        """Goes on from `state`; with other packs from a new window on. may_grow: with samples that were appended to
        parts, which are drawn from each stream's next epoch on.

        Raises UserError where data, costs, mix or reads are not those of the saved run.
        """
        check_whole(state, self._identity)
        then = samples_then(state, self.parts)
        grown = then is not None and then != self.parts and may_grow
        if grown or any(state["packing"].get(key) != self._identity["packing"][key] for key in PACKS):
            known = first_of(self.parts, then) if grown else np.arange(len(self.tokens))
            was = plan_as_it_was(self, state, known)
            try:
                was.load_state_dict(state)
            except UserError as error:
                raise UserError(f"{error}{APPENDED if grown else ''}") from None
            self.carried = take_over(self, was, known)
            self._window, self._start = was._window, {}
            self._start, self._steps, self._place = self._counters(), [], 0
            self._given = self._per_stream(self.carried)
            return
        refuse_other(state, self._identity)
        self.begin_at(state.get("first", 0))
        self._window, flat = state["window"], state["carried"]
        self.carried = list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))
        appended = state.get("grown") or [[0, 0]] * len(self.sources)
        for source, (drawn, tokens), (first, passed, *had) in zip(
            self.sources, state["streams"], appended, strict=True
        ):
            source.drawn, source.tokens = drawn, tokens
            unfinished(self, source, first, passed, had or None)
        self._start, self._steps, self._place = self._counters(), [], 0
        self._given = self._per_stream(self.carried)
        if state["place"]:
            self._plan_window()
            if state["place"] > len(self._steps):
                raise UserError(f"the saved place in the data, step {state['place']} of {len(self._steps)}, cannot be")
            self._place = state["place"]

    def follow(self, state: dict[str, Any], same_data: bool) -> None:
        """Begins a stage after one that ended at `state`: goes on from there where data, mix and packs are the same.

        Else from its own start: in orders of its own, with global sample numbers above all of the run so far.
        """
        if same_data and not others(state, self._identity):
            self.load_state_dict(state)
        else:
            self.begin_at(numbers_before(state))

    def begin_at(self, first: int) -> None:
        self.first = first
        for source in self.sources:
            source.begin_at(first)

    def steps_left(self) -> list[Step]:
        """What the window has not handed out."""
        return self._steps[self._place :]

    def _counters(self) -> dict[str, Any]:
        grown = [[source.whole_from, source.passed, *(source.had or ())] for source in self.sources]
        return {
            "window": self._window,
            "streams": [[source.drawn, source.tokens] for source in self.sources],
            "carried": [value for draw in self.carried for value in draw],
            **({"grown": grown} if any(map(any, grown)) else {}),
        }
