"""Pieces of a transformer block whose backward pass computes again what is cheap, rather than keep it.

Each is one autograd function over the plain formula in its docstring, in the dtype of what it is given; statistics and
sums over tokens are fp32 at least. Second derivatives are not there. Axes: T tokens, S keys, R noise rows, D width,
A heads, K head width, H hidden width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention import EXPLICIT

Rotary = tuple[Tensor, Tensor]


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, row: Tensor, eps: float = 1e-6) -> Tensor:
    """layer_norm(x) * (1 + scale[row]) + shift[row]: x [T,D], shift and scale [R,D], row int64 [T] -> [T,D].

    AdaLN (Peebles & Xie 2023). Keeps x, and not the normalised tokens nor the rows' values for each token.
    """
    return _ModulatedNorm.apply(x, shift, scale, row, eps)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, row: Tensor) -> Tensor:
    """x + gate[row] * y: x and y [T,D], gate [R,D], row int64 [T] -> [T,D]. Keeps y."""
    return _GatedResidual.apply(x, y, gate, row)


def gated_linear(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """linear(silu(gate) * value): gate and value [T,H], weight [D,H], bias [D] -> [T,D].

    The second half of SwiGLU (Shazeer 2020). Keeps gate and value, and not their product.
    """
    return _GatedLinear.apply(gate, value, weight.to(gate.dtype), bias.to(gate.dtype))


def norm_rotary(x: Tensor, weight: Tensor, rotary: Rotary | None, eps: float = 1e-6) -> Tensor:
    """RMS norm over each head's features, then rotation of the pairs (x_i, x_{i+K/2}).

    x [T,A,K], weight [K] -> [T,A,K]. QK-norm (Dehghani et al. 2023) and RoPE (Su et al. 2021); rotary is the cosines
    and sines [T,1,K/2], None for normalising only. Keeps x.
    """
    return _NormRotary.apply(x, weight, *(rotary or (None, None)), eps)


def normed_attention(
    q: Tensor,  # [T,A,K]
    k: Tensor,  # [S,A,K]
    v: Tensor,  # [S,A,K]
    weights: tuple[Tensor, Tensor],  # [K] each, of queries and keys
    rotary: Rotary | None,
    bounds: tuple[Tensor, Tensor],  # int32 [n+1] each, of the segments of queries and keys
    backend: str,  # a key of attention.EXPLICIT
    eps: float = 1e-6,
) -> Tensor:
    """Attention of norm_rotary(q), norm_rotary(k) and v -> [T,A,K].

    Keeps q, k and v, and not what is made of q and k.
    """
    if bounds[0] is bounds[1]:  # torch.compile takes no tensor twice
        bounds = bounds[0], None
    return _NormedAttention.apply(q, k, v, *weights, *(rotary or (None, None)), *bounds, backend, eps)


# --- modulation ------------------------------------------------------------------------------------------------------


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _row_sums(x: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sums of x [T,D] over the tokens of each row: [R,D]."""
    wide = x.to(_wide(x))
    return wide.new_zeros(rows, x.shape[1]).index_add_(0, row, wide)


def _affine(x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What leaves a norm as it is: on CPUs, its statistics have the precision of its weights."""
    if x.device.type != "cpu":
        return None, None
    weight = torch.ones(x.shape[-1], dtype=_wide(x), device=x.device)
    return weight, torch.zeros_like(weight)


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor, scale: Tensor, row: Tensor, eps: float) -> Tensor:
        normed, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], *_affine(x), eps)
        ctx.save_for_backward(x, scale, row, mean, deviation)
        return torch.addcmul(shift.index_select(0, row), normed, (1 + scale).index_select(0, row))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, row, mean, deviation = ctx.saved_tensors
        normed = ((x - mean) * deviation).to(x.dtype)
        shifts, scales = (_row_sums(g, row, len(scale)).to(scale.dtype) for g in (grad, grad * normed))
        grad = grad * (1 + scale).index_select(0, row)
        backward = torch.ops.aten.native_layer_norm_backward
        dx = backward(grad, x, x.shape[-1:], mean, deviation, *_affine(x), [True, False, False])[0]
        return dx, shifts, scales, None, None


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, gate: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(y, gate, row)
        return torch.addcmul(x, y, gate.index_select(0, row))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, row = ctx.saved_tensors
        return grad, grad * gate.index_select(0, row), _row_sums(grad * y, row, len(gate)).to(gate.dtype), None


# --- SwiGLU ----------------------------------------------------------------------------------------------------------


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(gate, value, weight)
        return F.linear(F.silu(gate).mul_(value), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        gate, value, weight = ctx.saved_tensors
        through = grad @ weight  # [T,H]
        active = F.silu(gate)
        d_weight, d_bias = grad.t() @ (active * value), grad.sum(0)
        d_gate = torch.ops.aten.silu_backward(through * value, gate)
        return d_gate, active.mul_(through), d_weight, d_bias


# --- attention -------------------------------------------------------------------------------------------------------


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """[T,A,1], in x's dtype: computed in fp32 and rounded once."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x))
    return torch.rsqrt(norm.square() / x.shape[-1] + eps).to(x.dtype)


def _turn(x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
    """The formula of norm_rotary, with the weight folded into the table, which is small."""
    inverse = _inverse_rms(x, eps)
    if cos is None:
        return x * inverse * weight.to(x.dtype)
    (a, b), (weight_a, weight_b) = x.chunk(2, dim=-1), weight.chunk(2)
    cos_a, sin_a, cos_b, sin_b = ((part * w).to(x.dtype) for w in (weight_a, weight_b) for part in (cos, sin))
    first = torch.addcmul(a * cos_a, b, sin_b, value=-1)
    second = torch.addcmul(b * cos_b, a, sin_a)
    return torch.cat([first, second], dim=-1).mul_(inverse)


def _turn_backward(
    grad: Tensor, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight by that of norm_rotary's output.

    With n = x / rms(x), and z the gradient turned back: dx = (w z - n mean(n w z)) / rms(x), dw = sum(z n).
    """
    inverse = _inverse_rms(x, eps)
    if cos is not None:
        (a, b), cos, sin = grad.chunk(2, dim=-1), cos.to(x.dtype), sin.to(x.dtype)
        grad = torch.cat([torch.addcmul(a * cos, b, sin), torch.addcmul(b * cos, a, sin, value=-1)], dim=-1)
    normed = x * inverse
    product, w = grad * normed, weight.to(x.dtype)
    mean = (product @ w / x.shape[-1])[..., None]  # [T,A,1]
    dx = torch.addcmul(grad * w, normed, mean, value=-1).mul_(inverse)
    return dx, product.sum((0, 1), dtype=_wide(x)).to(weight.dtype)


class _NormRotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, cos, sin)
        ctx.eps = eps
        return _turn(x, weight, cos, sin, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_turn_backward(grad, *ctx.saved_tensors, ctx.eps), None, None, None


def _both(bounds_q: Tensor, bounds_k: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys without bounds of their own have the queries'."""
    return bounds_q, bounds_q if bounds_k is None else bounds_k


class _NormedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, weight_q, weight_k, cos, sin, bounds_q, bounds_k, backend: str, eps: float) -> Tensor:
        ctx.save_for_backward(q, k, v, weight_q, weight_k, cos, sin, bounds_q, bounds_k)
        ctx.backend, ctx.eps = backend, eps
        made = _turn(q, weight_q, cos, sin, eps), _turn(k, weight_k, cos, sin, eps)
        return EXPLICIT[backend].forward(*made, v, *_both(bounds_q, bounds_k))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weight_q, weight_k, cos, sin, bounds_q, bounds_k = ctx.saved_tensors
        made = _turn(q, weight_q, cos, sin, ctx.eps), _turn(k, weight_k, cos, sin, ctx.eps)
        dq, dk, dv = EXPLICIT[ctx.backend].backward(grad, *made, v, *_both(bounds_q, bounds_k))
        dq, d_weight_q = _turn_backward(dq, q, weight_q, cos, sin, ctx.eps)
        dk, d_weight_k = _turn_backward(dk, k, weight_k, cos, sin, ctx.eps)
        return dq, dk, dv, d_weight_q, d_weight_k, *(None,) * 6
