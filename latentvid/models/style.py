"""StyleAligned (Hertz et al. 2023): clips take the look of a picture through the self-attention that they share.

In a pack with a clip and a picture, the picture's tokens see each other alone, as ever. The clip's queries and keys
get the picture's statistics (AdaIN, section 4.2 of the paper), and each frame's tokens attend to the picture's tokens
beside those that they attend to as ever. A look has no place: between a clip's queries and a picture's keys there is no
turn of rotary positions, as in the U-Nets of the paper, whose self-attention has none.

Axes: T tokens of a pack, n m of one sample, G gathered keys, A heads, K head width, D model width.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import packed_attention
from ..errors import UserError
from ..packing import Grid, Segments
from .attention_context import AttentionContext
from .layers import Attention, SelfAttention, apply_rotary
from .temporal import TemporalBlock
from .transformer import VideoDiT


class Pair(NamedTuple):
    """A clip and the picture whose look it takes, by their numbers among the samples of a pack."""

    clip: int
    picture: int


def with_statistics(x: Tensor, of: Tensor, eps: float = 1e-5) -> Tensor:
    """AdaIN (Huang & Belongie 2017, eq. 8): x [n,A,K] with the mean and deviation over tokens of `of` [m,A,K], head by
    head and channel by channel."""
    with torch.autocast(x.device.type, enabled=False):
        a, b = x.float(), of.float()
        mean, deviation = a.mean(0), (a.var(0, correction=0) + eps).sqrt()
        wanted, wide = b.mean(0), (b.var(0, correction=0) + eps).sqrt()
        return ((a - mean) / deviation * wide + wanted).to(x.dtype)


def shared_attentions(model: nn.Module) -> list[SelfAttention]:
    """The self-attention of each layer that sees whole frames. Raises UserError for a model that has none of ours."""
    if not isinstance(model, VideoDiT):
        name = getattr(model, "family", type(model).__name__)
        raise UserError(
            f"style transfer shares the attention of VideoDiT, and this model is {name}: train it with a reference of "
            "role style (docs/conditions.md), which style.py then shows it"
        )
    if any(block.compiled is not None for block in model.blocks):
        raise UserError("style transfer changes the attention of a model that is not compiled: load it without that")
    return [block.attention for block in model.blocks if not isinstance(block, TemporalBlock)]


class StyleAligned:
    """The self-attention of a model while clips take the looks of pictures.

    grids: token grids of the samples of a pack. pairs: which clip takes the look of which picture. scale: by which the
    picture's keys are multiplied; the more, the more of its look is taken (`shared_score_scale` of the authors' code).
    Guidance's second branch has the same samples again.
    """

    def __init__(self, model: nn.Module, grids: Sequence[Grid], pairs: Sequence[Pair], scale: float = 1.0) -> None:
        """Raises UserError for a model whose attention is not ours."""
        self.modules = shared_attentions(model)
        self.grids, self.pairs, self.scale = list(grids), list(pairs), scale
        self._joined: dict[tuple, _Joined] = {}

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Inside, the model's passes over that pack share attention."""
        for module in self.modules:
            module.forward = partial(self._attend, module)
        try:
            yield
        finally:
            for module in self.modules:
                del module.forward

    def _attend(self, module: Attention, x: Tensor, context: AttentionContext) -> Tensor:
        """`SelfAttention.forward`, shared: x [T,D] -> [T,D]."""
        if context.order is not None:  # along time, where a frame does not see its other places
            return type(module).forward(module, x, context)
        joined = self._of(context)
        q, (k, v) = module.queries(x), module.keys_values(x)  # [T,A,K] each, not turned yet
        q, k = q.clone(), k.clone()
        for clip, picture in joined.pairs:
            q[clip], k[clip] = with_statistics(q[clip], q[picture]), with_statistics(k[clip], k[picture])
        # [turned, as it is]: of own keys the first half counts, of the picture's the second; 2 K is what the backend's
        # 1 / sqrt(K) sees
        q = math.sqrt(2.0) * torch.cat([apply_rotary(q, context.rotary), q], dim=-1)
        own, shown = F.pad(apply_rotary(k, context.rotary), (0, k.shape[-1])), F.pad(self.scale * k, (k.shape[-1], 0))
        k = torch.cat([own, shown]).index_select(0, joined.gather)
        v = torch.cat([v, v]).index_select(0, joined.gather)
        made = packed_attention(q, k, F.pad(v, (0, v.shape[-1])), joined.queries, joined.keys, context.backend)
        return module.out(made[..., : v.shape[-1]].flatten(-2))

    def _of(self, context: AttentionContext) -> _Joined:
        """What of a pass is the same in all layers of a kind."""
        kind = len(context.samples.lengths), len(context.queries.lengths), context.gather is None
        if kind not in self._joined:
            branches, count = len(context.samples.lengths) // len(self.grids), len(self.grids)
            pairs = [
                Pair(clip + count * i, picture + count * i) for i in range(branches) for clip, picture in self.pairs
            ]
            self._joined[kind] = _Joined.of(context, pairs)
        return self._joined[kind]


@dataclass(frozen=True, eq=False)
class _Joined:
    """Who attends to what.

    pairs: rows of the clips and of their pictures. gather: int64 [G], the keys of all query segments in turn, as rows
    of the pack's T keys followed by the same ones as pictures show them.
    """

    pairs: list[tuple[slice, slice]]
    queries: Segments
    keys: Segments
    gather: Tensor

    @classmethod
    def of(cls, context: AttentionContext, pairs: Sequence[Pair]) -> _Joined:
        device, starts = context.frame.device, context.samples.cu_seqlens.tolist()
        rows = [slice(a, b) for a, b in pairwise(starts)]
        picture_of = {pair.clip: rows[pair.picture] for pair in pairs}
        gather = torch.arange(starts[-1]) if context.gather is None else context.gather.cpu()
        segments = zip(context.queries.cu_seqlens.tolist(), gather.split(context.keys.lengths), strict=False)
        keys = []
        for first, own in segments:
            picture = picture_of.get(bisect_right(starts, first) - 1)
            shown = () if picture is None else (torch.arange(picture.start, picture.stop) + starts[-1],)
            keys.append(torch.cat([own, *shown]))
        lengths = [len(each) for each in keys]
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(
            [(rows[clip], rows[picture]) for clip, picture in pairs],
            context.queries,
            Segments(ends, max(lengths), lengths),
            torch.cat(keys).to(device),
        )
