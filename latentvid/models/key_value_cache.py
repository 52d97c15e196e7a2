"""Keys and values of past latent frames, so that a rollout by a causal VideoDiT does not compute them again.

Axes: N samples, U cached tokens of all samples, T new tokens, A heads, K head width, h w a sample's rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..packing import Packed
from ..transfer import to_device


@dataclass(eq=False)
class BlockCache:
    """One block's rotated keys and values [U,A,K], sample by sample; None while there are none.

    With `records`, those of the forward pass, [T,A,K], are kept in `new_keys` and `new_values`.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    records: bool = False
    new_keys: Tensor | None = None
    new_values: Tensor | None = None

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The cached keys and values, and after them the pack's [T,A,K]: [U+T,A,K] each."""
        if self.records:
            self.new_keys, self.new_values = keys.detach(), values.detach()
        if self.keys is None:
            return keys, values
        return torch.cat([self.keys.to(keys.dtype), keys]), torch.cat([self.values.to(values.dtype), values])

    def merged(self, rows: Tensor) -> BlockCache:
        """These rows of the cached tokens followed by the recorded ones, as what is cached."""
        pairs = ((self.keys, self.new_keys), (self.values, self.new_values))
        parts = ([x for x in pair if x is not None] for pair in pairs)
        return BlockCache(*(torch.cat(part).index_select(0, rows) for part in parts))


class KeyValueCache:
    """What every block of a causal model computed for the past frames of each sample of a pack.

    In a pass with the cache the layout is of each sample's new frames: they attend to all its cached frames and
    causally to one another, and stand after the frames seen so far. Inside `recording()` a pass also adds its frames to
    the cache: run it once on finished frames, at their noise level (0 where they are clean). Samples keep their order,
    and each its text, from pass to pass; the two branches of classifier-free guidance are two samples.

        cache = KeyValueCache()
        with cache.recording():
            model(given, zeros, text, layout_of_given, text_layout, cache=cache)
        prediction = model(noised, levels, text, layout_of_new, text_layout, cache=cache)

    A pass gives what one over all frames at once would give (past ones at the level that they were recorded at), as
    long as `keep` drops none; positions stay those of the whole clip when it does. Gradients do not reach what is
    cached.
    """

    def __init__(self) -> None:
        self.blocks: list[BlockCache] = []
        self.shapes: list[tuple[int, int]] = []  # (h, w) of each sample's token grid
        self.frames: list[list[int]] = []  # numbers of the frames held of each sample, in order
        self.seen: list[int] = []  # frames of each sample so far, those dropped included
        self.records = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, a forward pass with this cache adds its frames to it."""
        self.records = True
        try:
            yield
        finally:
            self.records = False

    def keep(self, last: int, first: int = 0) -> None:
        """Drops all but each sample's first `first` frames and last `last` of those held: memory then has a bound."""
        if last < 0 or first < 0:
            raise ValueError(f"keep: last {last} and first {first} must not be negative")
        held = [[i for i in range(len(f)) if i < first or i >= len(f) - last] for f in self.frames]
        if self.blocks:
            self._take(range(len(held)), held)

    def select(self, samples: Sequence[int]) -> KeyValueCache:
        """A cache of some of the samples, in this order: those of a rollout that go on, or one branch of guidance."""
        other = KeyValueCache()
        for name in ("blocks", "shapes", "frames", "seen"):
            setattr(other, name, getattr(self, name))
        if self.blocks:
            other._take(samples, [range(len(self.frames[n])) for n in samples])
        return other

    def _take(self, samples: Sequence[int], held: Sequence[Sequence[int]]) -> None:
        """Leaves these samples, and of each the frames of these places."""
        starts = [0, *accumulate(self.lengths)]
        sizes = [h * w for h, w in self.shapes]
        rows = [torch.arange(0)]
        for n, places in zip(samples, held, strict=True):
            rows += [torch.arange(sizes[n]) + starts[n] + place * sizes[n] for place in places]
        index = torch.cat(rows).to(self.blocks[0].keys.device, non_blocking=True)
        self.blocks = [block.merged(index) for block in self.blocks]
        self.frames = [[self.frames[n][i] for i in places] for n, places in zip(samples, held, strict=True)]
        self.shapes, self.seen = [self.shapes[n] for n in samples], [self.seen[n] for n in samples]

    # --- for the model ------------------------------------------------------------------------------------------------

    @property
    def lengths(self) -> list[int] | None:
        """Cached tokens of each sample; None before the first frames."""
        if not self.blocks:
            return None
        return [len(frames) * h * w for frames, (h, w) in zip(self.frames, self.shapes, strict=True)]

    def check(self, layout: Packed, depth: int) -> None:
        """Raises ValueError where a layout's samples, or a model of so many blocks, are not the cache's."""
        if not self.blocks:
            return
        shapes = [(h, w) for _, h, w in layout.grid]
        if shapes != self.shapes:
            raise ValueError(
                f"new frames of tokens {shapes} for cached samples of {self.shapes}: give the same samples"
            )
        if depth != len(self.blocks):
            raise ValueError(f"a cache of {len(self.blocks)} blocks for a model of {depth}: give each model its own")

    def positions(self, layout: Packed) -> Tensor:
        """Positions [T,3] of the layout's tokens after the frames seen so far."""
        if not self.blocks:
            return layout.position
        offset = to_device([(n, 0, 0) for n in self.seen], layout.position.device)  # [N,3]
        return layout.position + offset.index_select(0, layout.segment)

    def for_blocks(self, depth: int) -> list[BlockCache]:
        """What each block reads, and writes where this pass is recorded: append() takes it."""
        blocks = self.blocks or [BlockCache()] * depth
        return [BlockCache(block.keys, block.values, self.records) for block in blocks]

    def append(self, layout: Packed, blocks: Sequence[BlockCache]) -> None:
        """Adds the layout's frames, of which each block has recorded its keys and values."""
        past = self.lengths or [0] * layout.segments
        old, new = torch.arange(sum(past)), torch.arange(sum(past), sum(past) + layout.tokens)
        pairs = zip(old.split(past), new.split(layout.lengths), strict=True)
        index = torch.cat([rows for pair in pairs for rows in pair]).to(layout.segment.device, non_blocking=True)
        self.blocks = [block.merged(index) for block in blocks]
        seen, frames = self.seen or [0] * layout.segments, self.frames or [[]] * layout.segments
        self.seen = [n + f for n, (f, _, _) in zip(seen, layout.grid, strict=True)]
        self.frames = [[*held, *range(n, m)] for held, n, m in zip(frames, seen, self.seen, strict=True)]
        self.shapes = [(h, w) for _, h, w in layout.grid]
