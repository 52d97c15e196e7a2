"""Which keys a token attends to in causal attention, as FlexAttention takes it: blocks of tokens, a rule inside them.

The keys of a token are one run: from its sample's first token to the last of its latent frame. So those of a block of
queries are a run of blocks too, of which those in the middle need no rule.

Axes: T tokens in a pack, R latent frames, Q blocks of tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ..packing import Packed
from ..transfer import to_device

SIDE = 128  # tokens of a block: what FlexAttention's kernels are made for


def causal_mask(layout: Packed) -> BlockMask:
    """Of a pack whose tokens attend to the latent frames of their sample up to their own, on the layout's device."""
    segment, frame, tokens = layout.segment, layout.frame, layout.tokens

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (segment[query] == segment[key]) & (frame[key] <= frame[query])

    first, full, after_full, last = (to_device(column, segment.device) for column in key_blocks(layout).T.tolist())
    place = torch.arange(-(-tokens // SIDE), device=segment.device)
    before = full - first
    some = torch.where(place < before[:, None], first[:, None] + place, (after_full - before)[:, None] + place)
    whole = full[:, None] + place
    return BlockMask.from_kv_blocks(
        (last - first - (after_full - full)).int()[None, None],
        some.clamp_max(len(place) - 1).int()[None, None],
        (after_full - full).int()[None, None],
        whole.clamp_max(len(place) - 1).int()[None, None],
        BLOCK_SIZE=SIDE,
        mask_mod=seen,
        seq_lengths=(tokens, tokens),
    )


def key_blocks(layout: Packed) -> np.ndarray:
    """Of each block of queries the run of blocks that have keys of it, and inside that the run of those all of whose
    keys all of its queries see: [Q,4], the bounds first <= full <= after_full <= last."""
    sizes = np.array([h * w for f, h, w in layout.grid for _ in range(f)])
    end = sizes.cumsum()  # [R]
    begin = np.repeat(np.cumsum([0, *layout.lengths[:-1]]), [f for f, _, _ in layout.grid])  # of each frame's sample
    start = np.arange(0, layout.tokens, SIDE)
    stop = np.minimum(start + SIDE, layout.tokens)
    a, b = np.searchsorted(end, start, side="right"), np.searchsorted(end, stop - 1, side="right")
    first, last = begin[a] // SIDE, -(-end[b] // SIDE)
    full, after_full = -(-begin[b] // SIDE), end[a] // SIDE
    none = (full >= after_full) | (stop - start < SIDE)  # what is left over at the end is no whole block
    return np.stack([first, np.where(none, first, full), np.where(none, first, after_full), last], axis=1)
