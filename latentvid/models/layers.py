"""Layers of the diffusion transformer.

Axes: T tokens, S text tokens, R latent frames, D width, A heads, K head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import EXPLICIT, packed_attention
from ..cpu.fused import gated_linear, gated_residual, modulated_norm, norm_rotary, normed_attention
from ..packing import Packed, Segments
from ..sequence import SequenceGroup
from .attention_context import AttentionPlan
from .key_value_cache import BlockCache
from .text_context import BlockText


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features [R,width] of noise levels t [R] in [0,1], scaled to DDPM's 0..1000 (Ho et al. 2020)."""
    frequency = torch.exp(-math.log(max_period) * torch.arange(width // 2, device=t.device) / (width // 2))
    angle = 1000.0 * t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def rotary_table(position: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """3D rotary positions (RoFormer, Su et al. 2021, one axis after another): two tables [T,1,K], C and S.

    x turned is x C + y S, where y is x with its halves in each other's place: C is (cos, cos), S is (-sin, sin) of the
    K/2 angles. position [T,3] is (frame, row, column); rows and columns get a third of the K/2 frequencies each, frames
    the rest.
    """
    pairs = head_width // 2
    space = pairs // 3
    angles = []
    for axis, n in enumerate((pairs - 2 * space, space, space)):
        frequency = theta ** (-torch.arange(n, device=position.device) / n)
        angles.append(position[:, axis, None] * frequency)
    angle = torch.cat(angles, dim=-1)[:, None]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class TokenNorm(nn.LayerNorm):
    """Layer norm over the last axis in x's dtype: [T,D] -> [T,D]. Under autocast nn.LayerNorm keeps fp32 on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype  # of statistics too
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(dtype), self.bias.to(dtype), self.eps)


class HeadNorm(nn.Module):
    """RMS norm over each head's K features, then rotation by a table where there is one: [T,A,K] in x's dtype."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_width))

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return norm_rotary(x, self.weight, rotary)


class GatedLinear(nn.Module):
    """linear(silu(gate) * value), [T,H] each -> [T,D]. Not an nn.Linear: what wraps those would miss the gate."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        linear = nn.Linear(hidden, width)  # for its parameters
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, gate: Tensor, value: Tensor) -> Tensor:
        return gated_linear(gate, value, self.weight, self.bias)


class SwiGLU(nn.Module):
    """SwiGLU (Shazeer 2020): [T,D] -> [T,D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = GatedLinear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1_g(x), self.fc1_x(x))


class PackedAttention(nn.Module):
    """Multi-head attention within segments, with RMS-normalised queries and keys (QK-norm, Dehghani et al. 2023).

    Tokens attend to the segment of the same index in `context`, which is x itself in self-attention.
    With `sequence`, the layout is of this process's piece of a pack, and tokens attend to their segment in the whole.
    With a `cache`, its keys and values stand before the context's; with `gather` [G], these are the ones attended to,
    by their rows. A context that keeps its keys and values is projected once.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.joined = True  # norms are part of attention's function; False runs them as modules, which gathers weights
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width if context_width is None else context_width, 2 * width)
        self.query_norm = HeadNorm(width // heads)
        self.key_norm = HeadNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,  # [T,D]
        context: Tensor | BlockText,  # [S,D'] (x itself in self-attention)
        layout: Segments,
        context_layout: Segments,
        backend: str,
        rotary: tuple[Tensor, Tensor] | None = None,
        gather: Tensor | None = None,
        sequence: SequenceGroup | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1))  # [T,A,K]
        if isinstance(context, BlockText):
            k, v = self._kept(context)
            return self.out(
                packed_attention(self.query_norm(q, rotary), k, v, layout, context_layout, backend).flatten(-2)
            )
        k, v = self._keys_values(context)
        if self.joined and backend in EXPLICIT and sequence is None and cache is None and gather is None:
            weights = self.query_norm.weight, self.key_norm.weight
            bounds = layout.cu_seqlens, context_layout.cu_seqlens
            return self.out(normed_attention(q, k, v, weights, rotary, bounds, backend).flatten(-2))
        q, k = self.query_norm(q, rotary), self.key_norm(k, rotary)
        if cache is not None:
            k, v = cache.extended(k, v)
        if gather is not None:
            k, v = k.index_select(0, gather), v.index_select(0, gather)
        if sequence is None:
            out = packed_attention(q, k, v, layout, context_layout, backend)
        else:
            whole = layout.whole
            q, k, v = sequence.to_heads(torch.stack([q, k, v], dim=1), whole.tokens).unbind(1)  # T of the whole pack
            out = sequence.to_tokens(packed_attention(q, k, v, whole, whole, backend))
        return self.out(out.flatten(-2))

    def _keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.key_value(context).unflatten(-1, (2, self.heads, -1)).unbind(-3)  # [S,A,K] each

    def _kept(self, text: BlockText) -> tuple[Tensor, Tensor]:
        if text.keys is None:
            k, v = self._keys_values(text.states)
            text.fill(self.key_norm(k), v)
        return text.keys, text.values


class Block(nn.Module):
    """DiT block with AdaLN-Zero (Peebles & Xie 2023) and cross-attention to text (PixArt, Chen et al. 2023).

    The six modulation vectors are computed per latent frame and read per token through `layout.frame`.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, text_width: int) -> None:
        super().__init__()
        self.attention = PackedAttention(width, heads)
        self.cross_norm = TokenNorm(width, eps=1e-6)
        self.cross = PackedAttention(width, heads, text_width)
        self.mlp = SwiGLU(width, int(mlp_ratio * width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self,
        x: Tensor,  # [T,D]
        condition: Tensor,  # [R,D]
        text: Tensor | BlockText,  # [S,D']
        plan: AttentionPlan,
        layout: Packed,
        text_layout: Packed,
        backend: str,
        sequence: SequenceGroup | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        rows = self.modulation(F.silu(condition))  # [R,6D]
        shift1, scale1, gate1, shift2, scale2, gate2 = rows.chunk(6, dim=-1)  # [R,D] each
        y = plan.arrange(modulated_norm(x, shift1, scale1, layout.frame))
        y = self.attention(y, y, plan.queries, plan.keys, backend, plan.rotary, plan.gather, sequence, cache)
        x = gated_residual(x, plan.restore(y), gate1, layout.frame)
        x = x + self.cross(self.cross_norm(x), text, layout, text_layout, backend)
        y = self.mlp(modulated_norm(x, shift2, scale2, layout.frame))
        return gated_residual(x, y, gate2, layout.frame)
