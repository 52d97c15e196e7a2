"""Which samples make up each training step: a small state machine, the same on every rank and world size.

A step is G packs of at most `budget` tokens, filled with whole samples. Samples are drawn in a new random order each
epoch; the n-th draw of a run has the global sample number n, to which all randomness is keyed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError

LOOKAHEAD = 32  # samples that may wait for a later step because no pack had room; bounds the saved state


class Draw(NamedTuple):
    """One use of a sample: its global number in the run, and its index in the data set."""

    number: int
    index: int


@dataclass(frozen=True)
class Step:
    """The packs of one step, with what the whole step holds over all ranks."""

    packs: tuple[tuple[Draw, ...], ...]
    samples: int
    tokens: int


class Plan:
    """Endless sequence of steps.

    Args:
        tokens: tokens of each sample of the data set.
        budget: tokens a pack holds at most.
        packs: G, packs of a step over all ranks and accumulation.
        seed: of the epochs' orders.

    Raises UserError where the data set is empty or a sample is larger than a pack.
    """

    def __init__(self, tokens: Sequence[int], *, budget: int, packs: int, seed: int) -> None:
        if not len(tokens):
            raise UserError("the data set is empty: no sample is left to train on")
        self.tokens = np.asarray(tokens, dtype=np.int64)
        if self.tokens.max() > budget:
            raise UserError(
                f"a pack holds {budget} tokens but the largest sample has {self.tokens.max()}: "
                "raise data.tokens_per_pack, or lower data.max_frames or data.max_area"
            )
        if packs < 1:
            raise UserError(f"data.packs_per_step is {packs}: it must be at least 1")
        self.budget, self.packs, self.seed = budget, packs, seed
        self.drawn = 0  # samples taken from the epochs' orders so far
        self.waiting: list[Draw] = []
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def next(self) -> Step:
        """Fills the next step's packs: each sample goes to the emptiest pack, or waits for the next step."""
        packs: list[list[Draw]] = [[] for _ in range(self.packs)]
        fill = [0] * self.packs
        waiting: list[Draw] = []
        queue, self.waiting = self.waiting, []
        smallest = int(self.tokens.min())
        while len(waiting) < LOOKAHEAD and min(fill) + smallest <= self.budget:
            draw = queue.pop(0) if queue else self._draw()
            emptiest = min(range(self.packs), key=fill.__getitem__)
            if fill[emptiest] + self.tokens[draw.index] <= self.budget:
                packs[emptiest].append(draw)
                fill[emptiest] += int(self.tokens[draw.index])
            else:
                waiting.append(draw)
        self.waiting = waiting + queue
        return Step(tuple(map(tuple, packs)), sum(map(len, packs)), sum(fill))

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here, as plain JSON values."""
        return {"drawn": self.drawn, "waiting": [list(draw) for draw in self.waiting], "samples": len(self.tokens)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["samples"] != len(self.tokens):
            raise UserError(
                f"this run began with {state['samples']} samples, the data set now has {len(self.tokens)}: "
                "resume with the same data, or start a new run.dir"
            )
        self.drawn = state["drawn"]
        self.waiting = [Draw(*draw) for draw in state["waiting"]]

    @property
    def epoch(self) -> float:
        """Passes over the data set so far."""
        return self.drawn / len(self.tokens)

    def _draw(self) -> Draw:
        epoch, place = divmod(self.drawn, len(self.tokens))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.tokens)))
        draw = Draw(self.drawn, int(self._order[1][place]))
        self.drawn += 1
        return draw
