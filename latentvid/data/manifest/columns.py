"""Long sequences in compact form: arrays inside, single values at the surface.

A million rows as Python objects take gigabytes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np

T = TypeVar("T")


class Column(Sequence[T], Generic[T]):
    """A read-only sequence whose values are made when asked for; a slice is a list of them."""

    @abstractmethod
    def _value(self, i: int) -> T:
        """Value i, 0 <= i < len."""

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> list[T]: ...
    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self._value(j) for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"{i} of {len(self)}")
        return self._value(int(i) % len(self))

    def __iter__(self):
        return map(self._value, range(len(self)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} values>"


class Made(Column[T]):
    """Values that a function of their number makes."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def _value(self, i: int) -> T:
        return self._make(i)


class Lookup(Column[T]):
    """A few distinct values, many times each: value i is `table[of[i]]`."""

    def __init__(self, table: Iterable[T], of: np.ndarray) -> None:
        self.table, self.of = list(table), of

    @classmethod
    def among(cls, values: Iterable[T]) -> Lookup[T]:
        """Of values that are at hand, one by one."""
        places: dict[T, int] = {}
        of = np.array([places.setdefault(value, len(places)) for value in values], np.int32)
        return cls(places, _narrow(of, len(places)))

    def __len__(self) -> int:
        return len(self.of)

    def _value(self, i: int) -> T:
        return self.table[self.of[i]]

    def counts(self) -> dict[T, int]:
        """How often each distinct value stands here."""
        return dict(zip(self.table, np.bincount(self.of, minlength=len(self.table)).tolist(), strict=True))

    def map(self, function: Callable[[T], Any]) -> Lookup:
        """`function` of every value, called once for each distinct one; equal results become one entry."""
        results = [function(value) for value in self.table]
        places = {result: place for place, result in enumerate(dict.fromkeys(results))}
        if len(places) == len(results):
            return Lookup(results, self.of)
        places_of = _narrow(np.array([places[result] for result in results]), len(places))
        return Lookup(list(places), places_of[self.of])

    def array(self) -> np.ndarray:
        """[N, ...] for tables of numbers, or of tuples of numbers."""
        return np.asarray(self.table)[self.of]


def distinct_rows(*columns: np.ndarray) -> Lookup[tuple[int, ...]]:
    """Rows of whole-number columns [N] as tuples; the table of distinct ones is in ascending order."""
    of = np.zeros(len(columns[0]), np.int64)
    for column in columns:  # one after another: unique of single numbers is many times quicker than of rows
        _, code = np.unique(column, return_inverse=True)
        _, first, of = np.unique(of * (code.max(initial=0) + 1) + code, return_index=True, return_inverse=True)
    table = zip(*(column[first].tolist() for column in columns), strict=True)
    return Lookup(table, _narrow(of, len(first)))


def paired(one: Lookup[T], other: Lookup[Any]) -> Lookup[tuple[T, Any]]:
    """Value i of the one, and value i of the other."""
    return distinct_rows(one.of, other.of).map(lambda at: (one.table[at[0]], other.table[at[1]]))


def _narrow(numbers: np.ndarray, end: int) -> np.ndarray:
    """Whole numbers from 0 to before `end`, in as few bytes as hold them."""
    return numbers.astype(np.min_scalar_type(max(end - 1, 0)))
