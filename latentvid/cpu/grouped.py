"""The attention backend `grouped`: segments of about equal length as one product, in the dtype of its inputs.

On CPUs segments in fp32 go through torch's own fused kernel, those of one length that stand side by side in one call,
which is up to 2 times faster than products; in bf16 it is up to 10 times slower.

Custom operators, so that compiled blocks hold each as one opaque node: no graph break, no recompile per layout.

Axes: T query tokens, S key tokens, A heads, K head width; of a group, n segments of L queries and M keys each.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .grouping import SOFTMAX_MULTIPLE, Rows, equal_runs, segment_groups

BLOCK_BYTES = 4 << 20  # of a head's scores that `grouped` works on at a time: within a CPU's last cache
FUSED_TOKENS = 32  # queries and keys of a segment from which torch's fused kernel is faster in fp32 than products
TURNED = 2048  # from so many queries and keys on, p^T g is computed as (g^T p)^T: up to 1.3 times as fast on CPUs


def _blocks(q: Tensor, keys: int) -> Iterator[tuple[slice, slice]]:
    """Pieces of a batch of heads q [b,L,K]: some heads, and of these all queries or some, block after block.

    A head has at most BLOCK_BYTES of scores in a block. On CPUs a block has as many heads as there are threads at
    least, so that each multiplies whole matrices: up to 1.1 times as fast as all of them sharing one.
    """
    batch, queries, _ = q.shape
    most = BLOCK_BYTES // q.element_size()
    length = min(queries, max(1, most // keys))
    heads = max(most // (length * keys), torch.get_num_threads() if q.device.type == "cpu" else 1)
    for first in range(0, batch, heads):
        for start in range(0, queries, length):
            yield slice(first, min(first + heads, batch)), slice(start, min(start + length, queries))


class _Scratch(threading.local):
    """Room for the scores of a block, kept from call to call on CPUs: to give its pages back takes 3% of a pass."""

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}

    def take(self, q: Tensor, keys: int, which: int) -> Tensor:
        """Room for any block of q [b,L,K], flat and in q's dtype; that of another `which` is another."""
        block = next(_blocks(q, keys))
        count = math.prod(part.stop for part in block) * keys
        if q.device.type != "cpu":
            return q.new_empty(count)
        size = count * q.element_size()
        if which not in self.buffers or self.buffers[which].nbytes < size:
            with torch.inference_mode(False):  # or training could not write to it
                self.buffers[which] = torch.empty(max(size, BLOCK_BYTES), dtype=torch.uint8, device="cpu")
        return self.buffers[which][:size].view(q.dtype)


_scratch = _Scratch()


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor) -> None:
    """scale a b, for batches of matrices, which need not be contiguous."""
    torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)  # with beta 0 nothing is read of out, not even a NaN


def _probabilities(q: Tensor, k: Tensor, scale: float, padded: Tensor | None, space: Tensor) -> Tensor:
    """Softmax of the scaled products of queries [b,L,K] and keys [b,M,K], in `space`: [b,L,M].

    Sums and exponentials are fp32 inside the operator, whatever the dtype.
    """
    p = space[: q.shape[0] * q.shape[1] * k.shape[1]].view(q.shape[0], q.shape[1], k.shape[1])
    _product(q, k.transpose(1, 2), scale, p)
    if padded is not None:
        p[..., -padded.shape[1] :].masked_fill_(padded[:, None], float("-inf"))
    wide = _ready(p)
    torch.ops.aten._softmax.out(wide, -1, False, out=wide)
    return p if wide is p else p.copy_(wide)


def _ready(x: Tensor) -> Tensor:
    """x for a softmax over its last axis, which computes in fp32 whatever the dtype: in fp32 where that is faster."""
    return x.float() if x.element_size() == 2 and x.shape[-1] % SOFTMAX_MULTIPLE else x


def _softmax_backward(grad: Tensor, p: Tensor) -> Tensor:
    """The gradient of the scores by that of the probabilities p, in its place."""
    wide, of_p = _ready(grad), _ready(p)
    torch.ops.aten._softmax_backward_data.out(wide, of_p, -1, of_p.dtype, grad_input=wide)
    return grad if wide is grad else grad.copy_(wide)


class _KeySums:
    """Scaled sums of a^T b over blocks of queries, for a [b,L,M] and b [b,L,K]: what the gradients of keys are."""

    def __init__(self, keys: Rows, q: Tensor, scale: float, out: Tensor) -> None:
        """q [n*A,L,K]: the queries; out [S+1,A,K]: where the gradients go."""
        batch, queries, width = q.shape
        self.keys, self.scale, self.out = keys, scale, out
        self.turned = min(queries, keys.length) >= TURNED
        (_, rows) = next(_blocks(q, keys.length))
        self.once = rows.stop == queries
        if self.once and not self.turned:
            self.total = keys.room(out)
            return
        shape = (batch, width, keys.length) if self.turned else (batch, keys.length, width)
        # sums of blocks are fp32 at least
        self.total = (
            q.new_empty(shape) if self.once else q.new_zeros(shape, dtype=torch.promote_types(q.dtype, torch.float32))
        )

    def add(self, heads: slice, a: Tensor, b: Tensor) -> None:
        total, first, second = self.total[heads], *((b, a) if self.turned else (a, b))
        first = first.transpose(1, 2)
        if self.once:
            _product(first, second, self.scale, total)
        elif total.dtype == a.dtype:
            total.baddbmm_(first, second, alpha=self.scale)
        else:
            total.add_(torch.bmm(first, second), alpha=self.scale)

    def put(self) -> None:
        (self.keys.put_turned if self.turned else self.keys.put)(self.total, self.out)


# --- the fused kernel ------------------------------------------------------------------------------------------------


def _may_fuse(q: Tensor) -> bool:
    return q.device.type == "cpu" and q.element_size() >= 4


def _fuses(q: Tensor, queries: Rows, keys: Rows) -> bool:
    return _may_fuse(q) and min(*queries.counts, *keys.counts) >= FUSED_TOKENS


def _sums(q: Tensor) -> Tensor:
    """Room for the logarithms of the sums of exponentials [T,A], which the fused kernel's backward pass takes."""
    return q.new_zeros(q.shape[0] if _may_fuse(q) else 0, q.shape[1], dtype=torch.promote_types(q.dtype, torch.float32))


def _side_by_side(x: Tensor) -> Tensor:
    """The kernel reads a head's features where the first one's neighbours should be."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _fused(q: Tensor, k: Tensor, v: Tensor, queries: Rows, keys: Rows, out: Tensor, sums: Tensor) -> None:
    q, k, v = map(_side_by_side, (q, k, v))
    runs = equal_runs(queries, keys)
    sides = (queries, q), (keys, k), (keys, v), (queries, out), (queries, sums)
    for *segment, to_out, to_sums in zip(*(side.views(x, runs) for side, x in sides), strict=True):
        part, logarithms = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*segment)
        to_out.copy_(part)
        to_sums.copy_(logarithms)


def _fused_backward(
    given: Sequence[Tensor], queries: Rows, keys: Rows, kept: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    """given: gradient of the output, q, k, v; kept: output, sums. Writes to the gradients of q, k, v."""
    sides = (queries, queries, keys, keys, queries, queries, queries, keys, keys)
    tensors = *map(_side_by_side, given), *kept, *gradients
    kernel, runs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward, equal_runs(queries, keys)
    for segment in zip(*(side.views(x, runs) for side, x in zip(sides, tensors, strict=True)), strict=True):
        for to, part in zip(segment[6:], kernel(*segment[:6], 0.0, False), strict=True):
            to.copy_(part)


# --- the operators ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("latentvid::grouped_attention", mutates_args=())
def grouped_attention(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> tuple[Tensor, Tensor]:
    """The backend `grouped` on [T,A,K] and [S,A,K]; the segments' bounds are int32 [n+1].

    Returns the output [T,A,K], and what its backward pass takes beside: [T,A], or [0,A] where it takes nothing, not
    even the output.
    """
    out = q.new_empty(len(q) + 1, *q.shape[1:])  # the last row takes what padded queries write
    sums = _sums(q)
    scale = 1.0 / math.sqrt(q.shape[-1])
    for queries, keys in segment_groups(q, k, cu_q, cu_k):
        if _fuses(q, queries, keys):
            _fused(q, k, v, queries, keys, out, sums)
            continue
        q_, k_, v_ = queries.heads(q), keys.heads(k), keys.heads(v)
        padded, part = keys.over_heads(q.shape[1]), queries.room(out)
        space = _scratch.take(q_, keys.length, 0)
        for b, rows in _blocks(q_, keys.length):
            p = _probabilities(q_[b, rows], k_[b], scale, None if padded is None else padded[b], space)
            torch.bmm(p, v_[b], out=part[b, rows])
        queries.put(part, out)
    return out[:-1], sums


@grouped_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q, memory_format=torch.contiguous_format), _sums(q)


@torch.library.custom_op("latentvid::grouped_attention_backward", mutates_args=())
def grouped_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, out: Tensor | None, sums: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v by that of the output [T,A,K]; out and sums as `kept` says.

    Probabilities are computed again rather than kept: memory stays linear in the tokens.
    """
    dq, dk, dv = (x.new_empty(len(x) + 1, *x.shape[1:]) for x in (q, k, v))  # the last row takes what is padding
    scale = 1.0 / math.sqrt(q.shape[-1])
    for queries, keys in segment_groups(q, k, cu_q, cu_k):
        if _fuses(q, queries, keys):
            _fused_backward((grad, q, k, v), queries, keys, (out, sums), (dq, dk, dv))
            continue
        q_, g_, k_, v_ = queries.heads(q), queries.heads(grad), keys.heads(k), keys.heads(v)
        if queries.padded is not None:  # a padded query, whose output has no gradient, adds nothing to any other
            g_[:, -queries.padded.shape[1] :].masked_fill_(queries.over_heads(q.shape[1])[..., None], 0.0)
        padded = keys.over_heads(q.shape[1])
        dq_, dk_, dv_ = queries.room(dq), _KeySums(keys, q_, scale, dk), _KeySums(keys, q_, 1.0, dv)
        space, other = (_scratch.take(q_, keys.length, i) for i in range(2))
        for b, rows in _blocks(q_, keys.length):
            of_q, of_g, of_k = q_[b, rows], g_[b, rows], k_[b]
            p = _probabilities(of_q, of_k, scale, None if padded is None else padded[b], space)
            dv_.add(b, p, of_g)
            ds = torch.bmm(of_g, v_[b].transpose(1, 2), out=other[: p.numel()].view_as(p))
            ds = _softmax_backward(ds, p)
            _product(ds, of_k, scale, dq_[b, rows])
            dk_.add(b, ds, of_q)
        queries.put(dq_, dq)
        dk_.put()
        dv_.put()
    return dq[:-1], dk[:-1], dv[:-1]


@grouped_attention_backward.register_fake
def _(grad, q, k, v, cu_q, cu_k, out, sums):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def kept(out: Tensor, sums: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of what `grouped_attention` returns, what its backward pass takes."""
    return (out, sums) if sums.shape[0] else (None, None)


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, *kept(*output))
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad: Tensor, _):
    return *grouped_attention_backward(grad, *ctx.saved_tensors), None, None


grouped_attention.register_autograd(_backward, setup_context=_setup)


# so that torch's FlopCounterMode counts them: by the segments' own lengths, a padded product as what it is of use
@register_flop_formula(torch.ops.latentvid.grouped_attention, get_raw=True)
def _flops(q, k, v, cu_q, cu_k, *_, out_val=None, **__) -> int:
    """Of q k^T and p v: a multiply-add is 2."""
    pairs = sum(a * b for a, b in zip(cu_q.diff().tolist(), cu_k.diff().tolist(), strict=True))
    return 4 * pairs * q.shape[1] * q.shape[2]


@register_flop_formula(torch.ops.latentvid.grouped_attention_backward, get_raw=True)
def _flops_backward(grad, q, k, v, cu_q, cu_k, *_, out_val=None, **__) -> int:
    """Of five products, the scores computed again among them, as torch counts its own operators."""
    return _flops(q, k, v, cu_q, cu_k) * 5 // 2
