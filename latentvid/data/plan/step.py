"""What a plan hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Draw(NamedTuple):
    """One use of a sample: its global number in the run, and its index in the data set."""

    number: int
    index: int


@dataclass(frozen=True)
class Step:
    """The packs of one step, dearest first, with what the whole step holds over all ranks.

    Rank r of w takes `packs[r::w]`: the packs that w ranks work on at once are neighbours in cost.
    """

    packs: tuple[tuple[Draw, ...], ...]
    samples: int
    tokens: int
    costs: tuple[float, ...]  # of each pack
    budget: int  # tokens a pack holds at most

    @property
    def fill(self) -> float:
        """Share of the packs' room that is used, 0 to 1."""
        return self.tokens / (self.budget * len(self.packs))

    @property
    def balance(self) -> float:
        """Mean cost of a pack over the dearest pack's, 0 to 1: what is left of speed when each rank waits for all."""
        return sum(self.costs) / (len(self.costs) * max(self.costs))
