"""Pieces of a transformer block for CPUs, which compute again in the backward pass what is cheap rather than keep it.

Each computes the formula of the same name in `models.layers`, in the dtype of what it is given; statistics and sums
over tokens are fp32 at least. Second derivatives are not there. Axes: T tokens, R latent frames, D width, A heads,
K head width, H hidden width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .rematerialise import rematerialised, rematerialising

Rotary = tuple[Tensor, Tensor]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """[T,D] -> [T,D]. The kernel's statistics have the precision of the weights."""
    wide = _wide(x)
    with torch.autocast("cpu", enabled=False):
        return F.layer_norm(x, x.shape[-1:], weight.to(wide), bias.to(wide), eps)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, frame: Tensor, eps: float = 1e-6) -> Tensor:
    """Keeps x, and not the normalised tokens nor the frames' values for each token."""
    return _ModulatedNorm.apply(x, shift, scale, frame, eps)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, frame: Tensor) -> Tensor:
    """Keeps y."""
    return _GatedResidual.apply(x, y, gate, frame)


def gated(gate: Tensor, value: Tensor, out: Callable[[Tensor], Tensor]) -> Tensor:
    """Keeps gate and value, and not their product: what `out` keeps of it is made of them again."""
    again = _Product()
    product = rematerialised(_Gate.apply(gate, value, again), again, gate, value)
    with rematerialising():
        return out(product)


def norm_rotary(x: Tensor, weight: Tensor, rotary: Rotary | None, eps: float = 1e-6) -> Tensor:
    """Keeps x; attention, which would keep the result, makes it again."""
    with torch.no_grad():
        inverse = _inverse_rms(x, eps)
    cos, sin = rotary or (None, None)
    turned = _NormRotary.apply(x, inverse, weight, cos, sin)
    # a copy of the weight, as a strategy may shard it before the backward pass
    return rematerialised(turned, _turn, x, inverse, weight.detach().clone(), cos, sin)


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As products of complex numbers, one pass over x."""
    return _TurnPairs.apply(x, torch.complex(cos[..., ::2], sin[..., ::2]))


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


def _frame_sums(x: Tensor, frame: Tensor, frames: int) -> Tensor:
    """Sums of x [T,D] over the tokens of each frame: [R,D], with sums inside in fp32 at least."""
    wide = x.to(_wide(x))
    return wide.new_zeros(frames, x.shape[1]).index_add_(0, frame, wide)


def _affine(x: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias that change nothing: the norm's statistics have their precision."""
    weight = torch.ones(x.shape[-1], dtype=_wide(x), device="cpu")
    return weight, torch.zeros_like(weight)


def _layer_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised tokens, mean and inverse deviation."""
    return torch.native_layer_norm(x, x.shape[-1:], *_affine(x), eps)


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    @_as_given
    def forward(ctx, x: Tensor, shift: Tensor, scale: Tensor, frame: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, scale, frame)
        ctx.eps = eps
        return torch.addcmul(shift.index_select(0, frame), _layer_norm(x, eps)[0], (1 + scale).index_select(0, frame))

    @staticmethod
    @once_differentiable
    @_as_given
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, frame = ctx.saved_tensors
        normed, *statistics = _layer_norm(x, ctx.eps)
        shifts = scales = None
        if any(ctx.needs_input_grad[1:3]):  # not where all but adapters is frozen
            shifts, scales = (_frame_sums(g, frame, len(scale)).to(scale.dtype) for g in (grad, grad * normed))
        grad = grad * (1 + scale).index_select(0, frame)
        backward = torch.ops.aten.native_layer_norm_backward
        dx = backward(grad, x, x.shape[-1:], *statistics, *_affine(x), [True, False, False])[0]
        return dx, shifts, scales, None, None


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    @_as_given
    def forward(ctx, x: Tensor, y: Tensor, gate: Tensor, frame: Tensor) -> Tensor:
        ctx.save_for_backward(y, gate, frame)
        return torch.addcmul(x, y, gate.index_select(0, frame))

    @staticmethod
    @once_differentiable
    @_as_given
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, frame = ctx.saved_tensors
        gates = _frame_sums(grad * y, frame, len(gate)).to(gate.dtype) if ctx.needs_input_grad[2] else None
        return grad, grad * gate.index_select(0, frame), gates, None


# --- SwiGLU ----------------------------------------------------------------------------------------------------------


class _Product:
    """silu(gate) * value, made again in the backward pass; silu(gate) is left for the gradient, which is next."""

    active: Tensor | None = None

    def __call__(self, gate: Tensor, value: Tensor) -> Tensor:
        self.active = F.silu(gate)
        return self.active * value


class _Gate(torch.autograd.Function):
    @staticmethod
    @_as_given
    def forward(ctx, gate: Tensor, value: Tensor, again: _Product) -> Tensor:
        ctx.save_for_backward(gate, value)
        ctx.again = again
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    @_as_given
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, value = ctx.saved_tensors
        active, ctx.again.active = ctx.again.active, None
        active = F.silu(gate) if active is None else active
        return torch.ops.aten.silu_backward(grad * value, gate), active.mul_(grad), None


# --- attention -------------------------------------------------------------------------------------------------------


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """[T,A,1], in x's dtype: computed in fp32 and rounded once."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x))
    return torch.rsqrt(norm.square() / x.shape[-1] + eps).to(x.dtype)


def _turn(x: Tensor, inverse: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """The formula of norm_rotary, with the weight folded into the table, which is small."""
    if cos is None:
        return x * weight.to(x.dtype) * inverse
    stay, turn = (cos * weight).to(x.dtype), (sin * rotate_half(weight)).to(x.dtype)  # [T,1,K]
    return (x * stay).addcmul_(_swap(x), turn).mul_(inverse)


def _swap(x: Tensor) -> Tensor:
    """The halves of the last axis in each other's place; in one piece, as products of halves are slow."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([second, first], dim=-1)  # a roll takes 5 times as long


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _turn_backward(
    grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight by that of norm_rotary's output.

    With n = x / rms(x), and z the gradient turned back: dx = (w z - n mean(n w z)) / rms(x), dw = sum(z n).
    """
    if cos is not None:
        back = (sin * rotate_half(torch.ones_like(weight))).to(x.dtype)  # [T,1,K]
        grad = (grad * cos.to(x.dtype)).addcmul_(_swap(grad), back, value=-1)
    normed, w = x * inverse, weight.to(x.dtype)
    product = grad * normed
    mean = (product @ w / x.shape[-1])[..., None]  # [T,A,1]
    dx = (grad * w).addcmul_(normed, mean, value=-1).mul_(inverse)
    # sums are fp32 inside and rounded once; asked for as a dtype, or over two axes, they take 15 times as long
    return dx, product.flatten(0, 1).sum(0).to(weight.dtype)


class _NormRotary(torch.autograd.Function):
    @staticmethod
    @_as_given
    def forward(ctx, x: Tensor, inverse: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, inverse, weight, cos, sin)
        return _turn(x, inverse, weight, cos, sin)

    @staticmethod
    @once_differentiable
    @_as_given
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx, d_weight = _turn_backward(grad, *ctx.saved_tensors)
        return dx, None, d_weight, None, None


class _TurnPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        return _turned(x, table)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _turned(grad, ctx.saved_tensors[0].conj()), None


def _turned(x: Tensor, table: Tensor) -> Tensor:
    pairs = x.to(_wide(x)).unflatten(-1, (-1, 2)).contiguous()
    return torch.view_as_real(torch.view_as_complex(pairs) * table).flatten(-2).to(x.dtype)
