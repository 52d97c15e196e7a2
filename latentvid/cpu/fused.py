"""Pieces of a transformer block whose backward pass computes again what is cheap, rather than keep it.

Each is one autograd function over the plain formula in its docstring, in the dtype of what it is given; statistics and
sums over tokens are fp32 at least. Second derivatives are not there. Axes: T tokens, S keys, R latent frames, D width,
A heads, K head width, H hidden width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

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

    x [T,A,K], weight [K] -> [T,A,K]. QK-norm (Dehghani et al. 2023) and RoPE (Su et al. 2021); rotary is that of
    `layers.rotary_table`, None for normalising only. Keeps x.
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


def _as_given(run: Callable) -> Callable:
    """A pass in the dtypes of what it is given: autocast would run some of its operators in another."""

    @functools.wraps(run)
    def exact(ctx, x: Tensor, *rest):
        if not torch.is_autocast_enabled(x.device.type):
            return run(ctx, x, *rest)
        with torch.autocast(x.device.type, enabled=False):
            return run(ctx, x, *rest)

    return exact


# --- modulation ------------------------------------------------------------------------------------------------------


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _row_sums(x: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sums of x [T,D] over the tokens of each row: [R,D], with sums inside in fp32 at least."""
    if x.device.type != "cpu":  # atomic additions to few rows wait for each other, in an order that is not fixed
        return _row_product(x, row, rows)
    # as an operator, since the compiler would make atomic additions of it, number by number
    return (_row_sums_op if torch.compiler.is_compiling() else _added_rows)(x, row, rows)


def _row_product(x: Tensor, row: Tensor, rows: int) -> Tensor:
    """_row_sums as a matrix product, in x's dtype."""
    return (row == torch.arange(rows, device=x.device)[:, None]).to(x.dtype) @ x


def _added_rows(x: Tensor, row: Tensor, rows: int) -> Tensor:
    wide = x.to(_wide(x))
    return wide.new_zeros(rows, x.shape[1]).index_add_(0, row, wide)


_row_sums_op = torch.library.custom_op("latentvid::row_sums", _added_rows, mutates_args=())


@_row_sums_op.register_fake
def _(x: Tensor, row: Tensor, rows: int) -> Tensor:
    return x.new_empty(rows, x.shape[1], dtype=_wide(x))


def _affine(x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What leaves a norm as it is: on CPUs, its statistics have the precision of its weights."""
    if x.device.type != "cpu":
        return None, None
    weight = torch.ones(x.shape[-1], dtype=_wide(x), device=x.device)
    return weight, torch.zeros_like(weight)


def _layer_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised tokens, mean and inverse deviation."""
    with torch.autocast(x.device.type, enabled=False):  # on CUDA it makes all of this fp32, gradients too
        return torch.native_layer_norm(x, x.shape[-1:], *_affine(x), eps)


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    @_as_given
    def forward(ctx, x: Tensor, shift: Tensor, scale: Tensor, row: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, scale, row)
        ctx.eps = eps
        return torch.addcmul(shift.index_select(0, row), _layer_norm(x, eps)[0], (1 + scale).index_select(0, row))

    @staticmethod
    @once_differentiable
    @_as_given
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, row = ctx.saved_tensors
        normed, *statistics = _layer_norm(x, ctx.eps)
        shifts, scales = (_row_sums(g, row, len(scale)).to(scale.dtype) for g in (grad, grad * normed))
        grad = grad * (1 + scale).index_select(0, row)
        backward = torch.ops.aten.native_layer_norm_backward
        dx = backward(grad, x, x.shape[-1:], *statistics, *_affine(x), [True, False, False])[0]
        return dx, shifts, scales, None, None


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    @_as_given
    def forward(ctx, x: Tensor, y: Tensor, gate: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(y, gate, row)
        return torch.addcmul(x, y, gate.index_select(0, row))

    @staticmethod
    @once_differentiable
    @_as_given
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, row = ctx.saved_tensors
        return grad, grad * gate.index_select(0, row), _row_sums(grad * y, row, len(gate)).to(gate.dtype), None


# --- SwiGLU ----------------------------------------------------------------------------------------------------------


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    @_as_given
    def forward(ctx, gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(gate, value, weight)
        return F.linear(F.silu(gate).mul_(value), weight, bias)

    @staticmethod
    @once_differentiable
    @_as_given
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


def _turn(x: Tensor, inverse: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """The formula of norm_rotary, with the weight folded into the table, which is small."""
    if cos is None:
        return x * weight.to(x.dtype) * inverse
    stay, turn = (cos * weight).to(x.dtype), (sin * _swap(weight)).to(x.dtype)  # [T,1,K]
    turned = (x * stay).addcmul_(_swap(x), turn)
    return turned * inverse  # not in place: torch 2.11 compiles no gradient for a function whose output was written to


def _swap(x: Tensor) -> Tensor:
    """The halves of the last axis in each other's place; in one piece, as products of halves are slow."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([second, first], dim=-1)  # a roll takes 5 times as long


def _turn_backward(
    grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight by that of norm_rotary's output.

    With n = x / rms(x), and z the gradient turned back: dx = (w z - n mean(n w z)) / rms(x), dw = sum(z n).
    """
    if cos is not None:
        grad = (grad * cos.to(x.dtype)).addcmul_(_swap(grad), sin.to(x.dtype), value=-1)
    normed, w = x * inverse, weight.to(x.dtype)
    product = grad * normed
    mean = (product @ w / x.shape[-1])[..., None]  # [T,A,1]
    dx = (grad * w).addcmul_(normed, mean, value=-1).mul_(inverse)
    # sums are fp32 inside and rounded once; asked for as a dtype, or over two axes, they take 15 times as long
    return dx, product.flatten(0, 1).sum(0).to(weight.dtype)


class _NormRotary(torch.autograd.Function):
    @staticmethod
    @_as_given
    def forward(ctx, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
        inverse = _inverse_rms(x, eps)
        ctx.save_for_backward(x, inverse, weight, cos, sin)
        return _turn(x, inverse, weight, cos, sin)

    @staticmethod
    @once_differentiable
    @_as_given
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_turn_backward(grad, *ctx.saved_tensors), None, None, None


class _NormedAttention(torch.autograd.Function):
    @staticmethod
    @_as_given
    def forward(ctx, q, k, v, weight_q, weight_k, cos, sin, bounds_q, bounds_k, backend: str, eps: float) -> Tensor:
        of_q, of_k = (q, _inverse_rms(q, eps), weight_q, cos, sin), (k, _inverse_rms(k, eps), weight_k, cos, sin)
        run = EXPLICIT[backend]
        out, more = run.forward(_turn(*of_q), _turn(*of_k), v, *_both(bounds_q, bounds_k))
        ctx.save_for_backward(*of_q, *of_k, v, bounds_q, bounds_k, *run.kept(out, more))
        ctx.backend = backend
        return out

    @staticmethod
    @once_differentiable
    @_as_given
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        *both, v, bounds_q, bounds_k, out, more = ctx.saved_tensors
        of_q, of_k, bounds = both[:5], both[5:], _both(bounds_q, bounds_k)
        dq, dk, dv = EXPLICIT[ctx.backend].backward(grad, _turn(*of_q), _turn(*of_k), v, *bounds, out, more)
        (dq, d_weight_q), (dk, d_weight_k) = _turn_backward(dq, *of_q), _turn_backward(dk, *of_k)
        return dq, dk, dv, d_weight_q, d_weight_k, *(None,) * 6


def _both(bounds_q: Tensor, bounds_k: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys without bounds of their own have the queries'."""
    return bounds_q, bounds_q if bounds_k is None else bounds_k
