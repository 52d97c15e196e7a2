"""Attention over packed sequences; the only file that knows the backends.

Axes: T query tokens, S key tokens, A heads, K head width. Segment i of the queries attends to segment i of the keys.

| backend   | where                          | what                                                               |
|-----------|--------------------------------|--------------------------------------------------------------------|
| `torch`   | CUDA, fp16/bf16, torch >= 2.10 | FlashAttention inside torch (`varlen_attn`)                        |
| `flash`   | CUDA, fp16/bf16                | the flash-attn package (extra `flash`)                             |
| `grouped` | any device, any dtype          | segments of about equal length as one product; the CPU's choice     |
| `sdpa`    | any device, any dtype          | one segment after another: the exact, slow reference               |
"""

from __future__ import annotations

import importlib.util
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .errors import UserError
from .packing import Segments

QUERY_MULTIPLE = 32  # segments whose lengths round up to the same multiple are one group: few, large products
KEY_MULTIPLE = 16  # keys are padded (and masked) to it: the CPU's softmax is 8 times slower on rows of 12 than of 16
KEY_STEPS = 4  # and in a group to at most 1/4 more than a segment has
BLOCK_ELEMENTS = 1 << 20  # scores that `grouped` works on at a time: 2 MB in bf16, within a CPU's caches


def _sdpa(q: Tensor, k: Tensor, v: Tensor, layout_q: Segments, layout_kv: Segments) -> Tensor:
    out = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in segment))[0].transpose(0, 1)
        for segment in zip(
            q.split(layout_q.lengths), k.split(layout_kv.lengths), v.split(layout_kv.lengths), strict=True
        )
    ]
    return torch.cat(out)


def _torch(q: Tensor, k: Tensor, v: Tensor, layout_q: Segments, layout_kv: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(q, k, v, layout_q.cu_seqlens, layout_kv.cu_seqlens, layout_q.max_len, layout_kv.max_len)


def _flash(q: Tensor, k: Tensor, v: Tensor, layout_q: Segments, layout_kv: Segments) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        q, k, v, layout_q.cu_seqlens, layout_kv.cu_seqlens, layout_q.max_len, layout_kv.max_len
    )


def _grouped(q: Tensor, k: Tensor, v: Tensor, layout_q: Segments, layout_kv: Segments) -> Tensor:
    return grouped_attention(q, k, v, layout_q.cu_seqlens, layout_kv.cu_seqlens)


BACKENDS = {"torch": _torch, "flash": _flash, "grouped": _grouped, "sdpa": _sdpa}


def packed_attention(q: Tensor, k: Tensor, v: Tensor, layout_q: Segments, layout_kv: Segments, backend: str) -> Tensor:
    """softmax(q k^T / sqrt(K)) v within each segment: q [T,A,K], k and v [S,A,K] -> [T,A,K]."""
    return BACKENDS[backend](q, k, v, layout_q, layout_kv)


def resolve_backend(name: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend that `name` ("auto" or a key of the table) means on this device; raises UserError if it is not there.

    "auto" is `torch` on CUDA in half precision, `grouped` elsewhere. All compute the same function.
    """
    cuda = torch.device(device).type == "cuda"
    half = dtype in (torch.float16, torch.bfloat16)
    if name == "auto":
        return "torch" if cuda and half else "grouped"
    if name not in BACKENDS:
        raise UserError(f"attention backend {name!r}: one of auto, {', '.join(BACKENDS)}")
    if name in ("torch", "flash") and not (cuda and half):
        raise UserError(
            f"attention backend {name!r} needs CUDA and bf16 or fp16, got {device} and {str(dtype)[6:]}: use 'auto'"
        )
    if name == "flash" and importlib.util.find_spec("flash_attn") is None:
        raise UserError("attention backend 'flash' needs the flash-attn package: pip install latentvid[flash]")
    return name


# --- grouped ---------------------------------------------------------------------------------------------------------
# Custom operators, so that compiled blocks hold each as one opaque node: no graph break, no recompile per layout.


@dataclass(frozen=True)
class _Rows:
    """Where the tokens of n segments stand, as a batch of L places each.

    Segments of one length that stand side by side are a run from `first`; else `index` [n,L] names the rows, one past
    the end for padding, and `padded` [n,L] is True there (None without padding).
    """

    segments: int
    length: int
    first: int
    index: Tensor | None
    padded: Tensor | None

    @classmethod
    def of(cls, starts: Sequence[int], counts: Sequence[int], length: int, x: Tensor) -> _Rows:
        n = len(starts)
        if all(
            count == length and start == starts[0] + i * length
            for i, (start, count) in enumerate(zip(starts, counts, strict=True))
        ):
            return cls(n, length, starts[0], None, None)
        offset = torch.arange(length, device=x.device)
        count, start = (torch.tensor(values, device=x.device)[:, None] for values in (counts, starts))
        past = offset >= count
        return cls(n, length, 0, torch.where(past, len(x), start + offset), past if min(counts) < length else None)

    def heads(self, x: Tensor) -> Tensor:
        """A copy of these rows of x [T,A,K], head by head: [n*A,L,K]; what is padding repeats the last row."""
        if self.index is None:
            rows = x[self.first : self.first + self.segments * self.length]
        else:
            rows = x.index_select(0, self.index.clamp(max=len(x) - 1).flatten())
        out = x.new_empty(self.segments, x.shape[1], self.length, x.shape[2])
        return out.copy_(rows.unflatten(0, (self.segments, self.length)).transpose(1, 2)).flatten(0, 1)

    def put(self, part: Tensor, out: Tensor) -> None:
        """Writes part [n*A,L,K] to its rows of out [T+1,A,K], padding to the last."""
        rows = part.unflatten(0, (self.segments, -1)).transpose(1, 2)  # [n,L,A,K]
        if self.index is None:
            run = out[self.first : self.first + self.segments * self.length]
            run.unflatten(0, (self.segments, self.length)).copy_(rows)
        else:
            out.index_copy_(0, self.index.flatten(), rows.flatten(0, 1).to(out.dtype))

    def over_heads(self, heads: int) -> Tensor | None:
        """`padded` for each head: [n*A,L]."""
        return None if self.padded is None else self.padded.repeat_interleave(heads, dim=0)


def _groups(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor) -> Iterator[tuple[_Rows, _Rows]]:
    """Segments of about equal length together: their queries, and their keys."""
    bounds_q, bounds_k = cu_q.tolist(), cu_k.tolist()
    if len(bounds_q) != len(bounds_k) or bounds_q[-1] != len(q) or bounds_k[-1] != len(k):
        raise ValueError(
            f"layouts of {len(bounds_q) - 1} segments with {bounds_q[-1]} queries and {len(bounds_k) - 1} segments "
            f"with {bounds_k[-1]} keys do not fit {len(q)} queries and {len(k)} keys"
        )
    counts_q, counts_k = ([b - a for a, b in pairwise(bounds)] for bounds in (bounds_q, bounds_k))
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (count_q, count_k) in enumerate(zip(counts_q, counts_k, strict=True)):
        step = max(KEY_MULTIPLE, 2 ** ((count_k - 1).bit_length() - 1) // KEY_STEPS)
        groups[_round_up(count_q, QUERY_MULTIPLE), _round_up(count_k, step)].append(i)
    for members in groups.values():
        length = max(counts_q[i] for i in members)
        keys = _round_up(max(counts_k[i] for i in members), KEY_MULTIPLE)
        yield (
            _Rows.of([bounds_q[i] for i in members], [counts_q[i] for i in members], length, q),
            _Rows.of([bounds_k[i] for i in members], [counts_k[i] for i in members], keys, k),
        )


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _blocks(batch: int, queries: int, keys: int) -> Iterator[tuple[slice, slice]]:
    """Pieces of a batch of heads, each whole or some of its queries, of at most BLOCK_ELEMENTS scores where they can.

    All blocks of one head follow each other.
    """
    length = min(queries, max(1, BLOCK_ELEMENTS // keys))
    heads = max(1, BLOCK_ELEMENTS // (length * keys)) if length == queries else 1
    for first in range(0, batch, heads):
        for start in range(0, queries, length):
            yield slice(first, min(first + heads, batch)), slice(start, min(start + length, queries))


def _space(x: Tensor, batch: int, queries: int, keys: int) -> Tensor:
    """Room for the scores of any block, so that pages are taken once."""
    block = next(_blocks(batch, queries, keys))
    return x.new_empty(math.prod(part.stop for part in block) * keys)


def _probabilities(q: Tensor, k: Tensor, padded: Tensor | None, space: Tensor) -> Tensor:
    """Softmax of the products of scaled queries [b,L,K] and keys [b,M,K], in `space`: [b,L,M].

    Sums and exponentials are fp32 inside the operator, whatever the dtype.
    """
    p = space[: q.shape[0] * q.shape[1] * k.shape[1]].view(q.shape[0], q.shape[1], k.shape[1])
    torch.bmm(q, k.transpose(1, 2), out=p)
    if padded is not None:
        p.masked_fill_(padded[:, None], float("-inf"))
    return torch.ops.aten._softmax.out(p, -1, False, out=p)


def _sums(queries: int, keys: int, x: Tensor) -> torch.dtype:
    """What the gradients of keys are summed in over blocks: x's own dtype where one block has all queries."""
    (_, rows) = next(_blocks(1, queries, keys))
    return x.dtype if rows.stop == queries else torch.promote_types(x.dtype, torch.float32)


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a b."""
    if out.dtype == a.dtype:
        out.baddbmm_(a, b)
    else:
        out.add_(torch.bmm(a, b))


@torch.library.custom_op("latentvid::grouped_attention", mutates_args=())
def grouped_attention(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    """The backend `grouped` on [T,A,K] and [S,A,K]; the segments' bounds are int32 [n+1]."""
    out = q.new_empty(len(q) + 1, *q.shape[1:])  # the last row takes what padded queries write
    scale = 1.0 / math.sqrt(q.shape[-1])
    for queries, keys in _groups(q, k, cu_q, cu_k):
        q_, k_, v_ = queries.heads(q).mul_(scale), keys.heads(k), keys.heads(v)
        padded, part = keys.over_heads(q.shape[1]), torch.empty_like(q_)
        space = _space(q_, *q_.shape[:2], keys.length)
        for b, rows in _blocks(*q_.shape[:2], keys.length):
            p = _probabilities(q_[b, rows], k_[b], None if padded is None else padded[b], space)
            torch.bmm(p, v_[b], out=part[b, rows])
        queries.put(part, out)
    return out[:-1]


@grouped_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@torch.library.custom_op("latentvid::grouped_attention_backward", mutates_args=())
def grouped_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v by that of the output [T,A,K].

    Probabilities are computed again rather than kept: memory stays linear in the tokens.
    """
    dq, dk, dv = (x.new_empty(len(x) + 1, *x.shape[1:]) for x in (q, k, v))  # the last row takes what is padding
    scale = 1.0 / math.sqrt(q.shape[-1])
    for queries, keys in _groups(q, k, cu_q, cu_k):
        q_, g_, k_, v_ = queries.heads(q).mul_(scale), queries.heads(grad), keys.heads(k), keys.heads(v)
        if queries.padded is not None:  # a padded query, whose output has no gradient, adds nothing to any other
            g_.masked_fill_(queries.over_heads(q.shape[1])[..., None], 0.0)
        padded = keys.over_heads(q.shape[1])
        dq_ = torch.empty_like(q_)
        dk_, dv_ = (torch.zeros_like(x, dtype=_sums(queries.length, keys.length, x)) for x in (k_, v_))
        space, other = (_space(q_, *q_.shape[:2], keys.length) for _ in range(2))
        for b, rows in _blocks(*q_.shape[:2], keys.length):
            p = _probabilities(q_[b, rows], k_[b], None if padded is None else padded[b], space)
            _add_product(dv_[b], p.transpose(1, 2), g_[b, rows])
            ds = torch.bmm(g_[b, rows], v_[b].transpose(1, 2), out=other[: p.numel()].view_as(p))
            torch.ops.aten._softmax_backward_data.out(ds, p, -1, p.dtype, grad_input=ds)
            torch.bmm(ds, k_[b], out=dq_[b, rows])
            _add_product(dk_[b], ds.transpose(1, 2), q_[b, rows])
        for rows, part, out in ((queries, dq_.mul_(scale), dq), (keys, dk_, dk), (keys, dv_, dv)):
            rows.put(part, out)
    return dq[:-1], dk[:-1], dv[:-1]


@grouped_attention_backward.register_fake
def _(grad, q, k, v, cu_q, cu_k):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor):
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


class Explicit(NamedTuple):
    """A backend on (q, k, v, bounds of the queries' segments, of the keys'), and its gradients of q, k, v by that of
    the output, which comes first of the arguments."""

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


# backends whose backward pass needs only their inputs, which can then be made again rather than kept
EXPLICIT = {"grouped": Explicit(grouped_attention, grouped_attention_backward)}
