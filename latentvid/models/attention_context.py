"""Which tokens a block's self-attention joins: plans made once a forward pass, outside the blocks.

Axes: T tokens in a pack, N segments (samples), R latent frames, G gathered keys, K head width; a sample's
token grid is (f, h, w).

| attention    | blocks     | a token attends to                     | (query, key) pairs of a sample |
|--------------|------------|----------------------------------------|--------------------------------|
| `full`       | all        | its sample                             | (f h w)^2                      |
| `factorised` | 0, 2, 4... | its latent frame                       | f (h w)^2                      |
|              | 1, 3, 5... | its row and column in all frames       | h w f^2                        |
| `causal`     | all        | the frames of its sample up to its own | (h w)^2 f (f+1)/2              |

`factorised` is variant 1 of Latte (Ma et al. 2024), "divided" attention block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..packing import Grid, Packed, Segments

ATTENTIONS = ("full", "factorised", "causal")
Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """How a block's tokens stand for self-attention, whose segment i of the queries attends to segment i of the keys.

    rotary: the tables [T,1,K] of `layers.rotary_table`, in the order in which they attend.
    order, back: int64 [T]; tokens[order] is that order, and [back] undoes it. None where it is the pack's.
    gather: int64 [G], the keys of all query segments in turn, as rows of those cached followed by those of the pack;
        None where each key stands in one segment.
    """

    queries: Segments
    keys: Segments
    rotary: Rotary
    order: Tensor | None = None
    back: Tensor | None = None
    gather: Tensor | None = None

    def arrange(self, x: Tensor) -> Tensor:
        return x if self.order is None else x.index_select(0, self.order)

    def restore(self, x: Tensor) -> Tensor:
        return x if self.back is None else x.index_select(0, self.back)


def make_plans(
    attention: str, layout: Packed, rotary: Rotary, past: Sequence[int] | None = None
) -> tuple[AttentionPlan, ...]:
    """The plans that blocks take in turn: block i the (i modulo their number)-th.

    past: cached tokens of each sample, which stand before the pack's as keys of causal attention; None is none.
    Raises ValueError for a piece of a pack under other than full attention.
    """
    if attention == "full":
        return (AttentionPlan(layout, layout, rotary),)
    if layout.whole is not None:
        raise ValueError(
            f"{attention} attention takes whole packs, and this is a piece of one: set train.sequence_parallel to 1, "
            "or attention to full"
        )
    if attention == "causal":
        return (_causal(layout, rotary, past or [0] * layout.segments),)
    frames = _frames(layout)
    return AttentionPlan(frames, frames, rotary), _along_time(layout, rotary)


def attended_pairs(attention: str, depth: int, grid: Grid) -> int:
    """(Query, key) pairs of self-attention for one sample in a model of so many blocks."""
    f, h, w = grid
    space, time, causal = f * (h * w) ** 2, h * w * f**2, (h * w) ** 2 * f * (f + 1) // 2
    in_turn = {"full": [(f * h * w) ** 2], "factorised": [space, time], "causal": [causal]}[attention]
    return sum(in_turn[i % len(in_turn)] for i in range(depth))


def _frames(layout: Packed) -> Segments:
    """A segment a latent frame."""
    return _segments(layout.frame_tokens, [h * w for f, h, w in layout.grid for _ in range(f)])


def _along_time(layout: Packed, rotary: Rotary) -> AttentionPlan:
    """A segment a position (row, column) of each sample, its frames in order."""
    device, places = layout.segment.device, [h * w for _, h, w in layout.grid]
    grid = torch.tensor(layout.grid, device=device)  # [N,3]
    frames, _, columns = grid.index_select(0, layout.segment).unbind(-1)  # [T] each
    frame, row, column = layout.position.unbind(-1)
    start = layout.cu_seqlens.long().index_select(0, layout.segment)
    back = start + (row * columns + column) * frames + frame
    order = torch.empty_like(back).scatter_(0, back, torch.arange(layout.tokens, device=device))
    counts = torch.repeat_interleave(grid[:, 0], torch.tensor(places, device=device), output_size=sum(places))
    lengths = [grid[0] for grid, n in zip(layout.grid, places, strict=True) for _ in range(n)]
    segments = _segments(counts, lengths)
    cos, sin = rotary
    return AttentionPlan(
        segments, segments, (cos.index_select(0, order), sin.index_select(0, order)), order=order, back=back
    )


def _causal(layout: Packed, rotary: Rotary, past: Sequence[int]) -> AttentionPlan:
    """A segment a latent frame, whose keys are those of its sample's cached frames and of its frames up to this one.

    Keys are copied into place for each frame, so a sample's are held (f+1)/2 times: exact with every backend.
    """
    device, total = layout.frame.device, sum(past)
    lengths = [p + i * h * w for p, (f, h, w) in zip(past, layout.grid, strict=True) for i in range(1, f + 1)]
    count = torch.tensor(lengths, device=device)  # [R] keys of each frame
    cached = torch.tensor(past, device=device)  # [N]
    keys, size = _segments(count, lengths), sum(lengths)
    frame = torch.repeat_interleave(torch.arange(layout.frames, device=device), count, output_size=size)  # [G]
    sample = layout.frame_segment.index_select(0, frame)
    offset = torch.arange(size, device=device) - (count.cumsum(0) - count).index_select(0, frame)
    first, n = (cached.cumsum(0) - cached).index_select(0, sample), cached.index_select(0, sample)
    new = total + layout.cu_seqlens.long().index_select(0, sample) + offset - n
    return AttentionPlan(_frames(layout), keys, rotary, gather=torch.where(offset < n, first + offset, new))


def _segments(counts: Tensor, lengths: list[int]) -> Segments:
    """Segments of so many tokens, given on the device and on the host."""
    cu_seqlens = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    return Segments(cu_seqlens, max(lengths), lengths)
