"""Which segments of a pack the attention backend `grouped` takes together, and where their tokens stand.

Axes: T query tokens, S key tokens, A heads, K head width; of a group, n segments of L queries and M keys each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

QUERY_MULTIPLE = 32  # segments whose lengths round up to the same multiple are one group: few, large products
KEY_MULTIPLE = 16  # keys are padded (and masked) to it: the CPU's softmax is 8 times slower on rows of 12 than of 16
SOFTMAX_MULTIPLE = 32  # rows of other lengths take the CPU's softmax in half precision up to 10 times as long as fp32
MANY_KEYS = 128  # from so many on keys are padded to that instead: up to 1.9 times as fast
FEW_QUERIES = 32  # up to so many queries, padded keys cost more than the quicker softmax saves
ALONE = 1 << 17  # pairs of a query and a key from which a segment is a group of its own: its products are large enough
KEY_STEPS = 4  # and in a group to at most 1/4 more than a segment has


@dataclass(frozen=True)
class Rows:
    """Where the tokens of n segments stand, as a batch of L places each.

    Segments of one length that stand side by side are a run, without an index; else `index` [n,L] names the rows, one
    past the end for padding, and `padded` is True there: bool [n,P], of the last P places (None without padding).
    """

    starts: Sequence[int]
    counts: Sequence[int]
    length: int
    index: Tensor | None
    padded: Tensor | None

    @classmethod
    def of(cls, starts: Sequence[int], counts: Sequence[int], length: int, total: int, device: torch.device) -> Rows:
        """Of a tensor that has `total` rows."""
        if all(
            count == length and start == starts[0] + i * length
            for i, (start, count) in enumerate(zip(starts, counts, strict=True))
        ):
            return cls(starts, counts, length, None, None)
        offset = torch.arange(length, device=device)
        count, start = (torch.tensor(values, device=device)[:, None] for values in (counts, starts))
        past, least = offset >= count, min(counts)
        index = torch.where(past, total, start + offset)
        return cls(starts, counts, length, index, past[:, least:] if least < length else None)

    @property
    def segments(self) -> int:
        return len(self.starts)

    def views(self, x: Tensor, runs: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        """The rows of x [T,A,...] of each of these `equal_runs`, head by head: views [n,A,L,...]."""
        for first, n in runs:
            start, count = self.starts[first], self.counts[first]
            yield x.narrow(0, start, n * count).unflatten(0, (n, count)).transpose(1, 2)

    def run(self, x: Tensor) -> Tensor:
        """These rows of x [T,A,K] where they are a run: [n,L,A,K]."""
        return x.narrow(0, self.starts[0], self.segments * self.length).unflatten(0, (self.segments, self.length))

    def heads(self, x: Tensor) -> Tensor:
        """These rows of x [T,A,K], head by head: [n*A,L,K], contiguous; what is padding repeats the last row."""
        if self.index is None:
            rows = self.run(x)
        else:
            rows = x.index_select(0, self.index.clamp(max=len(x) - 1).flatten()).unflatten(0, self.index.shape)
        return rows.transpose(1, 2).contiguous().flatten(0, 1)

    def room(self, out: Tensor) -> Tensor:
        """Where to write what `put` takes to out [T+1,A,K]: [n*A,L,K], the rows themselves where they allow a view."""
        if self.index is None and self.segments == 1:
            return self.run(out)[0].transpose(0, 1)
        return out.new_empty(self.segments * out.shape[1], self.length, out.shape[2])

    def put(self, part: Tensor, out: Tensor) -> None:
        """Writes part [n*A,L,K] to its rows of out [T+1,A,K], padding to the last."""
        if part.untyped_storage().data_ptr() == out.untyped_storage().data_ptr():
            return  # `room` was these rows
        rows = part.unflatten(0, (self.segments, -1)).transpose(1, 2)  # [n,L,A,K]
        if self.index is None:
            self.run(out).copy_(rows)
        else:
            out.index_copy_(0, self.index.flatten(), rows.flatten(0, 1).to(out.dtype))

    def put_turned(self, part: Tensor, out: Tensor) -> None:
        """`put` of part [n*A,K,L]: as one matrix a segment, which is the quick way to transpose."""
        for start, count, piece in zip(
            self.starts, self.counts, part.to(out.dtype).unflatten(0, (self.segments, -1)), strict=True
        ):
            out.narrow(0, start, count).flatten(1).copy_(piece.flatten(0, 1)[:, :count].t())

    def over_heads(self, heads: int) -> Tensor | None:
        """`padded` for each head: [n*A,P]."""
        return None if self.padded is None else self.padded.repeat_interleave(heads, dim=0)


def equal_runs(queries: Rows, keys: Rows) -> tuple[tuple[int, int], ...]:
    """The segments as runs: the first of each and how many there are, of one length and side by side on both sides."""
    return _equal_runs(tuple(queries.starts), tuple(queries.counts), tuple(keys.starts), tuple(keys.counts))


@lru_cache(maxsize=64)
def _equal_runs(*sides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    runs: list[tuple[int, int]] = []
    follows = None
    for i, (start_q, count_q, start_k, count_k) in enumerate(zip(*sides, strict=True)):
        if (start_q, count_q, start_k, count_k) == follows:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((i, 1))
        follows = start_q + count_q, count_q, start_k + count_k, count_k
    return tuple(runs)


def segment_groups(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor) -> tuple[tuple[Rows, Rows], ...]:
    """Segments of about equal length together: their queries, and their keys."""
    bounds_q, bounds_k = tuple(cu_q.tolist()), tuple(cu_k.tolist())
    if len(bounds_q) != len(bounds_k) or bounds_q[-1] != len(q) or bounds_k[-1] != len(k):
        raise ValueError(
            f"layouts of {len(bounds_q) - 1} segments with {bounds_q[-1]} queries and {len(bounds_k) - 1} segments "
            f"with {bounds_k[-1]} keys do not fit {len(q)} queries and {len(k)} keys"
        )
    return _by_bounds(bounds_q, bounds_k, q.device)


@lru_cache(maxsize=16)  # every block of a network asks for the same ones, in both passes
def _by_bounds(
    bounds_q: tuple[int, ...], bounds_k: tuple[int, ...], device: torch.device
) -> tuple[tuple[Rows, Rows], ...]:
    counts_q, counts_k = ([b - a for a, b in pairwise(bounds)] for bounds in (bounds_q, bounds_k))
    together: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, (count_q, count_k) in enumerate(zip(counts_q, counts_k, strict=True)):
        step = max(KEY_MULTIPLE, 2 ** ((count_k - 1).bit_length() - 1) // KEY_STEPS)
        alone = (i,) if count_q * count_k >= ALONE else ()
        together[_round_up(count_q, QUERY_MULTIPLE), _round_up(count_k, step), *alone].append(i)
    rows = []
    for members in together.values():
        length = max(counts_q[i] for i in members)
        keys = max(counts_k[i] for i in members)
        if length > FEW_QUERIES:
            keys = _round_up(keys, KEY_MULTIPLE if keys < MANY_KEYS else SOFTMAX_MULTIPLE)
        sides = (bounds_q, counts_q, length), (bounds_k, counts_k, keys)
        rows.append(
            tuple(
                Rows.of([bounds[i] for i in members], [counts[i] for i in members], most, bounds[-1], device)
                for bounds, counts, most in sides
            )
        )
    return tuple(rows)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
