"""The order in which a stream's samples are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ORDER, STEPS = 1, 2  # what a generator is for


class Stream(NamedTuple):
    """A source of samples: their indices in the data set, and its share of the tokens drawn (any positive number;
    shares are divided by their sum); its name, for people."""

    index: np.ndarray
    weight: float
    name: str = "all"


class Source:
    """A stream's own endless sequence of reads: each of its epochs is a new order of all.

    Where samples were appended, the epoch that was under way then is finished without them: until `whole_from` samples
    are drawn. `passed` epochs lie before the first one of all. had: of each part of the data set, the samples that the
    unfinished epoch is of.
    """

    def __init__(self, stream: Stream, sizes: np.ndarray, seed: int, number: int) -> None:
        """sizes: samples of the read that begins with each sample; 0 for those that begin none."""
        index = np.asarray(stream.index, dtype=np.int32)
        self.samples, self.weight, self.name = len(index), float(stream.weight), stream.name
        self.index = index if single(sizes) else index[sizes[index] > 0]
        self.seed, self.number = seed, number
        self.drawn = self.tokens = 0  # samples, and tokens of these
        self.whole_from = self.passed = 0
        self.had: tuple[int, ...] | None = None
        self._before = self.index  # first samples of the unfinished epoch's reads
        self._had_samples = self.samples
        self._sizes = sizes
        self.begin_at(0)

    def begin_at(self, first: int) -> None:
        """first: the run's global sample number at which the data of this source begin."""
        self._first = first
        self._epoch, self._order, self._begins = -1, None, None

    def peek(self) -> int:
        """First sample of the next read."""
        epoch, place = self.place()
        if epoch != self._epoch:
            generator = np.random.default_rng(numbered((self.seed, ORDER, self.number, epoch), self._first))
            self._epoch, self._order = epoch, None  # the last one makes room
            self._order = generator.permutation(self._before if epoch < self.passed else self.index)
            if not single(self._sizes):
                sizes = self._sizes[self._order]
                self._begins = np.cumsum(sizes) - sizes  # samples of the epoch before each read
        return int(self._order[place if self._begins is None else np.searchsorted(self._begins, place)])

    def place(self) -> tuple[int, int]:
        """The epoch of the next read, and the samples drawn of it."""
        if self.drawn < self.whole_from:
            return self.passed - 1, self.drawn - self.whole_from + self._had_samples
        epoch, place = divmod(self.drawn - self.whole_from, self.samples)
        return self.passed + epoch, place

    def done(self, drawn: int) -> float:
        """Passes over the samples after so many draws, times their number."""
        if drawn < self.whole_from:
            return (self.passed - (self.whole_from - drawn) / self._had_samples) * self.samples
        return self.passed * self.samples + drawn - self.whole_from

    def restore(self, whole_from: int, passed: int, had: Sequence[int] | None, before: np.ndarray | None) -> None:
        """The unfinished epoch, of the samples `before` of those that there are now; None where there is none."""
        self.whole_from, self.passed, self._epoch = whole_from, passed, -1
        self.had = tuple(had) if had is not None and self.drawn < whole_from else None
        if before is not None:
            self._had_samples = len(before)
            self._before = before if single(self._sizes) else before[self._sizes[before] > 0]

    def appended(self, epoch: int, place: int, had: Sequence[int], before: np.ndarray) -> None:
        """There are more samples from here on than those `before`, of which an epoch is under way at that place."""
        if not place:
            self.restore(self.drawn, epoch, None, None)
        elif self.drawn >= self.whole_from:  # else the epoch under way is of still fewer
            self.restore(self.drawn + len(before) - place, epoch + 1, had, before)


def numbered(key: tuple[int, ...], first: int) -> tuple[int, ...]:
    """A generator's key in a plan whose global sample numbers begin at `first`: another for each stage of a run."""
    return (*key, first) if first else key


def single(sizes: np.ndarray) -> bool:
    """Whether each sample is a read of its own, as told by no reads at all."""
    return sizes.strides == (0,)
