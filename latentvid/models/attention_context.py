"""What the attention of a block reads beside features: made once a forward pass, outside the blocks.

Axes: T tokens in a pack, N segments (samples), R latent frames, S text tokens, G gathered keys, A heads, K head width;
a sample's token grid is (f, h, w).

| attention    | blocks     | a token attends to                     | (query, key) pairs of a sample |
|--------------|------------|----------------------------------------|--------------------------------|
| `full`       | all        | its sample                             | (f h w)^2                      |
| `factorised` | 0, 2, 4... | its latent frame                       | f (h w)^2                      |
|              | 1, 3, 5... | its row and column in all frames       | h w f^2                        |
| `causal`     | all        | the frames of its sample up to its own | (h w)^2 f (f+1)/2              |
| `inflated`   | all        | its latent frame                       | f (h w)^2                      |
|              | temporal   | its row and column in all frames       | h w f^2                        |

`inflated` is of a model of images whose blocks go on seeing one frame each, at position 0 in time; temporal blocks are
inserted between them (temporal.py). `factorised` is variant 1 of Latte (Ma et al. 2024), "divided" attention block by
block. Tokens of a sample's references (packing.py) are of its sample, in `full` attention alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ..attention import masked_attention, packed_attention
from ..packing import Grid, Packed, Reference, Segments, Shape
from ..sequence import SequenceGroup
from ..transfer import to_device
from .causal_mask import causal_mask
from .key_value_cache import BlockCache

ATTENTIONS = ("full", "factorised", "causal", "inflated")
Rotary = tuple[Tensor, Tensor]  # cosines and sines [T,1,K]


@dataclass(frozen=True, eq=False)
class AttentionContext:
    """Segment i of the queries attends to segment i of the keys, in self-attention and to text.

    frame: int64 [T], the latent frame of each token.
    samples, text: segments of the pack's tokens and of the text tokens: sample i attends to prompt i.
    queries, keys: segments of self-attention.
    rotary: the tables of `layers.rotary_table`, in the order of self-attention.
    backend: the key of the table in attention.py.
    order, back: int64 [T]; tokens[order] is the order of self-attention, and [back] undoes it. None: the pack's order.
    gather: int64 [G], the keys of all query segments in turn, as rows of the cached keys followed by the pack's.
        None: each key stands in one segment.
    sequence: the processes that share the pack, of which this one has a piece; None: this one has all.
    cache: keys and values of past frames, which stand before the pack's.
    mask: of causal attention by FlexAttention, instead of `gather`.
    moving: bool [T,1], tokens of samples of more than one latent frame, which alone temporal blocks change; None: all.
    """

    frame: Tensor
    samples: Segments
    text: Segments
    queries: Segments
    keys: Segments
    rotary: Rotary
    backend: str
    order: Tensor | None = None
    back: Tensor | None = None
    gather: Tensor | None = None
    sequence: SequenceGroup | None = None
    cache: BlockCache | None = None
    moving: Tensor | None = None
    mask: BlockMask | None = None

    def arrange(self, x: Tensor) -> Tensor:
        return x if self.order is None else x.index_select(0, self.order)

    def restore(self, x: Tensor) -> Tensor:
        return x if self.back is None else x.index_select(0, self.back)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Self-attention: [T,A,K] each -> [T,A,K]."""
        if self.cache is not None:
            k, v = self.cache.extended(k, v)
        if self.mask is not None:
            return masked_attention(q, k, v, self.mask)
        if self.gather is not None:
            k, v = k.index_select(0, self.gather), v.index_select(0, self.gather)
        if self.sequence is None:
            return packed_attention(q, k, v, self.queries, self.keys, self.backend)
        q, k, v = self.sequence.gather(torch.stack([q, k, v], dim=1), self.queries.tokens).unbind(1)  # the whole pack's
        return self.sequence.shard(packed_attention(q, k, v, self.queries, self.keys, self.backend))

    def attend_to_text(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Cross-attention: q [T,A,K], k and v [S,A,K] -> [T,A,K]."""
        return self.attend_to(q, k, v, self.text)

    def attend_to(self, q: Tensor, k: Tensor, v: Tensor, other: Segments) -> Tensor:
        """Of each sample's tokens to its segment of other ones: q [T,A,K], k and v [S,A,K] -> [T,A,K]."""
        return packed_attention(q, k, v, self.samples, other, self.backend)


def make_contexts(
    attention: str,
    layout: Packed,
    text_layout: Segments,
    rotary: Rotary,
    backend: str,
    sequence: SequenceGroup | None = None,
    past: Sequence[int] | None = None,
    still: Rotary | None = None,
) -> tuple[AttentionContext, ...]:
    """The contexts that blocks take in turn: block i takes the i-th, modulo their number. Of `inflated` attention that
    of the blocks, and that of the temporal ones.

    sequence: the processes to share a pack with, where the layout is of a piece of one.
    past: cached tokens of each sample, which stand before the pack's as keys of causal attention; None: no tokens.
    still: the tables at position 0 in time, of the blocks of `inflated` attention; None: `rotary`.
    Raises ValueError for a piece of a pack, and for references, under other than full attention.
    """
    whole = layout if layout.whole is None else layout.whole
    context = AttentionContext(layout.frame, layout, text_layout, whole, whole, rotary, backend)
    if attention == "full":
        return (context if layout.whole is None else replace(context, sequence=sequence),)
    if layout.whole is not None:
        raise ValueError(
            f"{attention} attention takes whole packs, and this is a piece of one: set train.sequence_parallel to 1, "
            "or attention to full"
        )
    if layout.references:
        raise ValueError(f"{attention} attention has no place for references: they need full attention")
    if attention == "causal":
        if backend == "flex" and past is None:
            return (replace(context, mask=causal_mask(layout)),)
        return (_causal(context, layout, past or [0] * layout.segments),)
    frames, along_time = _frames(layout), _along_time(context, layout)
    if attention == "inflated":
        return (
            replace(context, queries=frames, keys=frames, rotary=still or rotary),
            replace(along_time, moving=_moving(layout)),
        )
    return replace(context, queries=frames, keys=frames), along_time


def attended_pairs(
    attention: str, depth: int, grid: Grid, references: Sequence[Reference] = (), temporal: int = 0
) -> int:
    """(Query, key) pairs of self-attention for one sample in a model of so many blocks. references: under full
    attention, which alone takes them. temporal: blocks of `inflated` attention that are inserted."""
    if references:
        return depth * Shape(grid, tuple(references)).tokens ** 2
    f, h, w = grid
    space, time, causal = f * (h * w) ** 2, h * w * f**2, (h * w) ** 2 * f * (f + 1) // 2
    turns = {"full": [(f * h * w) ** 2], "factorised": [space, time], "causal": [causal], "inflated": [space]}
    in_turn = turns[attention]
    return sum(in_turn[i % len(in_turn)] for i in range(depth)) + temporal * time


def _frames(layout: Packed) -> Segments:
    """A segment a latent frame."""
    return _segments(layout.frame_tokens, [h * w for f, h, w in layout.grid for _ in range(f)])


def _along_time(context: AttentionContext, layout: Packed) -> AttentionContext:
    """A segment a position (row, column) of each sample, its frames in order."""
    device, places = layout.segment.device, [h * w for _, h, w in layout.grid]
    grid = to_device(layout.grid, device)  # [N,3]
    frames, _, columns = grid.index_select(0, layout.segment).unbind(-1)  # [T] each
    frame, row, column = layout.position.unbind(-1)
    start = layout.cu_seqlens.long().index_select(0, layout.segment)
    back = start + (row * columns + column) * frames + frame
    order = torch.empty_like(back).scatter_(0, back, torch.arange(layout.tokens, device=device))
    counts = torch.repeat_interleave(grid[:, 0], to_device(places, device), output_size=sum(places))
    lengths = [grid[0] for grid, n in zip(layout.grid, places, strict=True) for _ in range(n)]
    segments = _segments(counts, lengths)
    cos, sin = (table.index_select(0, order) for table in context.rotary)
    return replace(context, queries=segments, keys=segments, rotary=(cos, sin), order=order, back=back)


def _moving(layout: Packed) -> Tensor | None:
    """bool [T,1], tokens of samples of more than one latent frame; None: all are."""
    if all(f > 1 for f, _, _ in layout.grid):
        return None
    several = to_device([f > 1 for f, _, _ in layout.grid], layout.segment.device)  # [N]
    return several.index_select(0, layout.segment)[:, None]


def _causal(context: AttentionContext, layout: Packed, past: Sequence[int]) -> AttentionContext:
    """A segment a latent frame, whose keys are those of its sample's cached frames and of its frames up to this one.

    Keys are copied into place for each frame, so a sample's are held (f+1)/2 times: exact with every backend.
    """
    device, total = layout.frame.device, sum(past)
    lengths = [p + i * h * w for p, (f, h, w) in zip(past, layout.grid, strict=True) for i in range(1, f + 1)]
    count = to_device(lengths, device)  # [R] keys of each frame
    cached = to_device(past, device)  # [N]
    keys, size = _segments(count, lengths), sum(lengths)
    frame = torch.repeat_interleave(torch.arange(layout.frames, device=device), count, output_size=size)  # [G]
    sample = layout.frame_segment.index_select(0, frame)
    offset = torch.arange(size, device=device) - (count.cumsum(0) - count).index_select(0, frame)
    first, n = (cached.cumsum(0) - cached).index_select(0, sample), cached.index_select(0, sample)
    new = total + layout.cu_seqlens.long().index_select(0, sample) + offset - n
    gather = torch.where(offset < n, first + offset, new)
    return replace(context, queries=_frames(layout), keys=keys, gather=gather)


def _segments(counts: Tensor, lengths: list[int]) -> Segments:
    """Segments of so many tokens, given on the device and on the host."""
    cu_seqlens = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    return Segments(cu_seqlens, max(lengths), lengths)
