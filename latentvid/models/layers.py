"""Layers of the diffusion transformer.

Axes: T tokens, S text tokens, R latent frames, D width, H hidden width, A heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import or_cpu_kernel
from .attention_context import AttentionContext, Rotary
from .text_context import BlockText, KeysValues

# --- formulas --------------------------------------------------------------------------------------------------------


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features [R,width] of noise levels t [R] in [0,1], scaled to DDPM's 0..1000 (Ho et al. 2020)."""
    frequency = torch.exp(-math.log(max_period) * torch.arange(width // 2, device=t.device) / (width // 2))
    angle = 1000.0 * t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def rate_embedding(fps: Tensor, width: int, max_period: float = 32.0) -> Tensor:
    """Sinusoidal features [N,width] of the logarithms of frame rates fps [N], or of scales of guidance; all 0 where a
    rate is 0, not known.

    The quickest turn once while a rate grows e-fold, the slowest once in `max_period` such steps: 23.976 and 24 are
    nearly one, and what lies between two rates of training is between them here too.
    """
    frequency = max_period ** -(torch.arange(width // 2, device=fps.device) / (width // 2))
    angle = 2 * math.pi * fps.float().clamp_min(1e-3).log()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1) * (fps > 0)[:, None]


def time_positions(frame: Tensor, stride: int, rate: Tensor) -> Tensor:
    """Where latent frames of number `frame` [T] stand in time, in latent frames of a reference rate: float32 [T].

    rate: [T], that reference rate over the clip's. The first latent frame is one frame of the clip, at time 0; a later
    one stands for the next `stride` frames and is placed at their middle: frame k at k - (stride - 1) / 2 stride. What
    lies between the first and the second is placed on a line between them.
    """
    back = (stride - 1) / (2 * stride)
    return torch.where(frame < 1, frame * (1 - back), frame - back) * rate


def rotary_table(position: Tensor, head_width: int, theta: float) -> Rotary:
    """Cosines and sines [T,1,K] of 3D rotary positions (RoFormer, Su et al. 2021, one axis after another).

    position [T,3] is (frame or time, row, column). Of the K/2 frequencies rows and columns get a third each, time the
    rest.
    """
    pairs = head_width // 2
    space = pairs // 3
    angles = []
    for axis, n in enumerate((pairs - 2 * space, space, space)):
        frequency = theta ** (-torch.arange(n, device=position.device) / n)
        angles.append(position[:, axis, None] * frequency)
    angle = torch.cat(angles + angles, dim=-1)[:, None]  # of both halves
    return angle.cos(), angle.sin()


def rotate_half(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) for the halves of the last axis."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def apply_rotary(x: Tensor, rotary: Rotary) -> Tensor:
    """[T,A,K] -> [T,A,K]: turns each pair (x_i, x_{i+K/2}) by its angle."""
    cos, sin = (table.to(x.dtype) for table in rotary)
    return x * cos + rotate_half(x) * sin


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def per_token(values: Tensor, frame: Tensor) -> Tensor:
    """values[frame]: of each frame [R,D] -> of each token [T,D]."""
    return _PerToken.apply(values, frame)


@or_cpu_kernel
def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """[T,D] -> [T,D] in x's dtype, also under autocast."""
    weight, bias = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


@or_cpu_kernel
def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, frame: Tensor, eps: float = 1e-6) -> Tensor:
    """AdaLN (Peebles & Xie 2023): x [T,D], shift and scale [R,D] of each frame, frame of each token [T] -> [T,D]."""
    return modulate(layer_norm(x, eps=eps), per_token(shift, frame), per_token(scale, frame))


@or_cpu_kernel
def gated_residual(x: Tensor, y: Tensor, gate: Tensor, frame: Tensor) -> Tensor:
    """x and y [T,D], gate [R,D] of each frame, frame of each token [T] -> [T,D]."""
    return x + per_token(gate, frame) * y


@or_cpu_kernel
def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of neighbouring pairs (x_2i, x_2i+1) in fp32: x [T,A,K], cos and sin [T,1,K] or [T,A,K], each
    angle twice. Source: RoFormer (Su et al. 2021), equation 34."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    a, b = wide.unflatten(-1, (-1, 2)).unbind(-1)
    return (wide * cos + torch.stack([-b, a], dim=-1).flatten(-2) * sin).to(x.dtype)


@or_cpu_kernel
def gated(gate: Tensor, value: Tensor, out: Callable[[Tensor], Tensor]) -> Tensor:
    """[T,H] each -> [T,D]."""
    return out(F.silu(gate) * value)


@or_cpu_kernel
def norm_rotary(x: Tensor, weight: Tensor, rotary: Rotary | None) -> Tensor:
    """RMS norm of each head, then rotation where there is a table: [T,A,K] -> [T,A,K] in x's dtype."""
    with torch.autocast(x.device.type, enabled=False):
        x = F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps=1e-6)
    return x if rotary is None else apply_rotary(x, rotary)


class _PerToken(torch.autograd.Function):
    """Its gradient, sums over the tokens of a frame, is a matrix product: many additions to few rows are slow."""

    @staticmethod
    def forward(ctx, values: Tensor, frame: Tensor) -> Tensor:
        ctx.save_for_backward(frame)
        ctx.frames = values.shape[0]
        return values.index_select(0, frame)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (frame,) = ctx.saved_tensors
        of_frame = frame == torch.arange(ctx.frames, device=frame.device)[:, None]  # [R,T]
        return of_frame.to(grad.dtype) @ grad, None


# --- modules ---------------------------------------------------------------------------------------------------------


class LayerNorm(nn.LayerNorm):
    """[T,D] -> [T,D] in x's dtype, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class HeadNorm(nn.Module):
    """QK-norm (Dehghani et al. 2023) and rotation of queries or keys: [T,A,K] -> [T,A,K]."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_width))

    def forward(self, x: Tensor, rotary: Rotary | None = None) -> Tensor:
        return norm_rotary(x, self.weight, rotary)


class SwiGLU(nn.Module):
    """SwiGLU (Shazeer 2020): [T,D] -> [T,D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return gated(self.fc1_g(x), self.fc1_x(x), self.fc2)


class Attention(nn.Module):
    """What self-attention and cross-attention share: projections, and norms of queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.query_norm = HeadNorm(width // heads)
        self.key_norm = HeadNorm(width // heads)
        self.out = nn.Linear(width, width)

    def queries(self, x: Tensor, rotary: Rotary | None = None) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1))  # [T,A,K]
        return self.query_norm(q, rotary)

    def keys_values(self, x: Tensor, rotary: Rotary | None = None) -> KeysValues:
        k, v = self.key_value(x).unflatten(-1, (2, self.heads, -1)).unbind(-3)  # [S,A,K] each
        return self.key_norm(k, rotary), v


class SelfAttention(Attention):
    """Tokens attend to those of their sample that the context names: [T,D] -> [T,D]."""

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        x = context.arrange(x)
        q, (k, v) = self.queries(x, context.rotary), self.keys_values(x, context.rotary)
        return context.restore(self.out(context.attend(q, k, v).flatten(-2)))


class CrossAttention(Attention):
    """Tokens attend to the prompt of their sample: [T,D] and text states [S,D], or its keys and values, -> [T,D]."""

    def forward(self, x: Tensor, text: Tensor | KeysValues, context: AttentionContext) -> Tensor:
        k, v = self.keys_values(text) if isinstance(text, Tensor) else text
        return self.out(context.attend_to_text(self.queries(x), k, v).flatten(-2))


class Block(nn.Module):
    """DiT block with AdaLN-Zero (Peebles & Xie 2023) and cross-attention to text (PixArt, Chen et al. 2023).

    The modulation is computed for each latent frame, and each token takes that of its frame.
    """

    compiled: Callable[..., Tensor] | None = None  # what runs instead of `compute`

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.cross_norm = LayerNorm(width, eps=1e-6)
        self.cross = CrossAttention(width, heads)
        self.mlp = SwiGLU(width, int(mlp_ratio * width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, text: Tensor | BlockText, context: AttentionContext) -> Tensor:
        """x [T,D], condition [R,D], text states [S,D] -> [T,D]."""
        if isinstance(text, BlockText):  # many passes read these prompts
            text = text.keys_values(self.cross)
        return (self.compiled or Block.compute)(self, x, condition, text, context)

    def compute(self, x: Tensor, condition: Tensor, text: Tensor | KeysValues, context: AttentionContext) -> Tensor:
        frame = context.frame
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition)  # [R,D] each
        x = gated_residual(x, self.attention(modulated_norm(x, shift1, scale1, frame), context), gate1, frame)
        x = x + self.cross(self.cross_norm(x), text, context)
        return gated_residual(x, self.mlp(modulated_norm(x, shift2, scale2, frame)), gate2, frame)

    def adaLN_modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.modulation(F.silu(condition)).chunk(6, dim=-1)
