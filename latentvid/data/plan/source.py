"""The order in which a stream's samples are drawn."""

from __future__ import annotations

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
    """A stream's own endless sequence of reads: each of its epochs is a new order of all."""

    def __init__(self, stream: Stream, sizes: np.ndarray, seed: int, number: int) -> None:
        """sizes: samples of the read that begins with each sample; 0 for those that begin none."""
        index = np.asarray(stream.index, dtype=np.int32)
        self.samples, self.weight, self.name = len(index), float(stream.weight), stream.name
        self.index = index if single(sizes) else index[sizes[index] > 0]
        self.seed, self.number = seed, number
        self.drawn = self.tokens = 0  # samples, and tokens of these
        self._sizes = sizes
        self.begin_at(0)

    def begin_at(self, first: int) -> None:
        """first: the run's global sample number at which the data of this source begin."""
        self._first = first
        self._epoch, self._order, self._begins = -1, None, None

    def peek(self) -> int:
        """First sample of the next read."""
        epoch, place = divmod(self.drawn, self.samples)
        if epoch != self._epoch:
            generator = np.random.default_rng(numbered((self.seed, ORDER, self.number, epoch), self._first))
            self._epoch, self._order = epoch, None  # the last one makes room
            self._order = generator.permutation(self.index)
            if not single(self._sizes):
                sizes = self._sizes[self._order]
                self._begins = np.cumsum(sizes) - sizes  # samples of the epoch before each read
        return int(self._order[place if self._begins is None else np.searchsorted(self._begins, place)])


def numbered(key: tuple[int, ...], first: int) -> tuple[int, ...]:
    """A generator's key in a plan whose global sample numbers begin at `first`: another for each stage of a run."""
    return (*key, first) if first else key


def single(sizes: np.ndarray) -> bool:
    """Whether each sample is a read of its own, as told by no reads at all."""
    return sizes.strides == (0,)
