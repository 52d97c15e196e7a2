"""The attention backend `grouped`: segments of about equal length as one product, in the dtype of its inputs.

Custom operators, so that compiled blocks hold each as one opaque node: no graph break, no recompile per layout.

Axes: T query tokens, S key tokens, A heads, K head width; of a group, n segments of L queries and M keys each.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

QUERY_MULTIPLE = 32  # segments whose lengths round up to the same multiple are one group: few, large products
KEY_MULTIPLE = 16  # keys are padded (and masked) to it: the CPU's softmax is 8 times slower on rows of 12 than of 16
FEW_QUERIES = 32  # up to so many queries, padded keys cost more than the quicker softmax saves
KEY_STEPS = 4  # and in a group to at most 1/4 more than a segment has
SOFTMAX_MULTIPLE = 32  # rows of other lengths take the CPU's softmax in half precision up to 10 times as long as fp32
BLOCK_BYTES = 4 << 20  # of scores that `grouped` works on at a time: within a CPU's last cache
TURNED = 512  # from so many queries and keys on, p^T g is computed as (g^T p)^T: up to 1.3 times quicker on CPUs


@dataclass(frozen=True)
class _Rows:
    """Where the tokens of n segments stand, as a batch of L places each.

    Segments of one length that stand side by side are a run, without an index; else `index` [n,L] names the rows, one
    past the end for padding, and `padded` is True there: bool [n,P], of the last P places (None without padding).
    """

    starts: Sequence[int]
    counts: Sequence[int]
    length: int
    index: Tensor | None
    padded: Tensor | None

    @classmethod
    def of(cls, starts: Sequence[int], counts: Sequence[int], length: int, total: int, device: torch.device) -> _Rows:
        """Of a tensor that has `total` rows."""
        if all(
            count == length and start == starts[0] + i * length
            for i, (start, count) in enumerate(zip(starts, counts, strict=True))
        ):
            return cls(starts, counts, length, None, None)
        offset = torch.arange(length, device=device)
        count, start = (torch.tensor(values, device=device)[:, None] for values in (counts, starts))
        past, least = offset >= count, min(counts)
        index = torch.where(past, total, start + offset)
        return cls(starts, counts, length, index, past[:, least:] if least < length else None)

    @property
    def segments(self) -> int:
        return len(self.starts)

    def run(self, x: Tensor) -> Tensor:
        """These rows of x [T,A,K] where they are a run: [n,L,A,K]."""
        return x.narrow(0, self.starts[0], self.segments * self.length).unflatten(0, (self.segments, self.length))

    def heads(self, x: Tensor) -> Tensor:
        """A copy of these rows of x [T,A,K], head by head: [n*A,L,K]; what is padding repeats the last row."""
        if self.index is None:
            rows = self.run(x)
        else:
            rows = x.index_select(0, self.index.clamp(max=len(x) - 1).flatten()).unflatten(0, self.index.shape)
        out = x.new_empty(self.segments, x.shape[1], self.length, x.shape[2])
        return out.copy_(rows.transpose(1, 2)).flatten(0, 1)

    def put(self, part: Tensor, out: Tensor) -> None:
        """Writes part [n*A,L,K] to its rows of out [T+1,A,K], padding to the last."""
        rows = part.unflatten(0, (self.segments, -1)).transpose(1, 2)  # [n,L,A,K]
        if self.index is None:
            self.run(out).copy_(rows)
        else:
            out.index_copy_(0, self.index.flatten(), rows.flatten(0, 1).to(out.dtype))

    def put_turned(self, part: Tensor, out: Tensor) -> None:
        """`put` of part [n*A,K,L]: as one matrix a segment, which is the quick way to transpose."""
        for start, count, piece in zip(
            self.starts, self.counts, part.to(out.dtype).unflatten(0, (self.segments, -1)), strict=True
        ):
            out.narrow(0, start, count).flatten(1).copy_(piece.flatten(0, 1)[:, :count].t())

    def over_heads(self, heads: int) -> Tensor | None:
        """`padded` for each head: [n*A,P]."""
        return None if self.padded is None else self.padded.repeat_interleave(heads, dim=0)


def _groups(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor) -> tuple[tuple[_Rows, _Rows], ...]:
    """Segments of about equal length together: their queries, and their keys."""
    bounds_q, bounds_k = tuple(cu_q.tolist()), tuple(cu_k.tolist())
    if len(bounds_q) != len(bounds_k) or bounds_q[-1] != len(q) or bounds_k[-1] != len(k):
        raise ValueError(
            f"layouts of {len(bounds_q) - 1} segments with {bounds_q[-1]} queries and {len(bounds_k) - 1} segments "
            f"with {bounds_k[-1]} keys do not fit {len(q)} queries and {len(k)} keys"
        )
    return _grouping(bounds_q, bounds_k, q.device)


@lru_cache(maxsize=16)  # every block of a network asks for the same ones, in both passes
def _grouping(
    bounds_q: tuple[int, ...], bounds_k: tuple[int, ...], device: torch.device
) -> tuple[tuple[_Rows, _Rows], ...]:
    counts_q, counts_k = ([b - a for a, b in pairwise(bounds)] for bounds in (bounds_q, bounds_k))
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (count_q, count_k) in enumerate(zip(counts_q, counts_k, strict=True)):
        step = max(KEY_MULTIPLE, 2 ** ((count_k - 1).bit_length() - 1) // KEY_STEPS)
        groups[_round_up(count_q, QUERY_MULTIPLE), _round_up(count_k, step)].append(i)
    rows = []
    for members in groups.values():
        length = max(counts_q[i] for i in members)
        keys = max(counts_k[i] for i in members)
        if length > FEW_QUERIES:
            keys = _round_up(keys, KEY_MULTIPLE)
        sides = (bounds_q, counts_q, length), (bounds_k, counts_k, keys)
        rows.append(
            tuple(
                _Rows.of([bounds[i] for i in members], [counts[i] for i in members], most, bounds[-1], device)
                for bounds, counts, most in sides
            )
        )
    return tuple(rows)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _blocks(q: Tensor, keys: int) -> Iterator[tuple[slice, slice]]:
    """Pieces of a batch of heads q [b,L,K], each whole or some of its queries, of at most BLOCK_BYTES of scores.

    All blocks of one head follow each other.
    """
    batch, queries, _ = q.shape
    most = BLOCK_BYTES // q.element_size()
    length = min(queries, max(1, most // keys))
    heads = max(1, most // (length * keys)) if length == queries else 1
    for first in range(0, batch, heads):
        for start in range(0, queries, length):
            yield slice(first, min(first + heads, batch)), slice(start, min(start + length, queries))


def _space(q: Tensor, keys: int) -> Tensor:
    """Room for the scores of any block of q [b,L,K], so that pages are taken once."""
    block = next(_blocks(q, keys))
    return q.new_empty(math.prod(part.stop for part in block) * keys)


def _probabilities(q: Tensor, k: Tensor, padded: Tensor | None, space: Tensor) -> Tensor:
    """Softmax of the products of scaled queries [b,L,K] and keys [b,M,K], in `space`: [b,L,M].

    Sums and exponentials are fp32 inside the operator, whatever the dtype.
    """
    p = space[: q.shape[0] * q.shape[1] * k.shape[1]].view(q.shape[0], q.shape[1], k.shape[1])
    torch.bmm(q, k.transpose(1, 2), out=p)
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
    """Sums of a^T b over blocks of queries, for a [b,L,M] and b [b,L,K]: what the gradients of keys are."""

    def __init__(self, x: Tensor, q: Tensor) -> None:
        """x [n*A,M,K]: the keys; q [n*A,L,K]: the queries."""
        batch, keys, width = x.shape
        self.turned = min(q.shape[1], keys) >= TURNED
        (_, rows) = next(_blocks(q, keys))
        self.once = rows.stop == q.shape[1]
        shape = (batch, width, keys) if self.turned else (batch, keys, width)
        # sums of blocks are fp32 at least
        self.total = (
            x.new_empty(shape) if self.once else x.new_zeros(shape, dtype=torch.promote_types(x.dtype, torch.float32))
        )

    def add(self, heads: slice, a: Tensor, b: Tensor) -> None:
        total, first, second = self.total[heads], *((b, a) if self.turned else (a, b))
        first = first.transpose(1, 2)
        if self.once:
            torch.bmm(first, second, out=total)
        elif total.dtype == a.dtype:
            total.baddbmm_(first, second)
        else:
            total.add_(torch.bmm(first, second))

    def put(self, rows: _Rows, out: Tensor) -> None:
        (rows.put_turned if self.turned else rows.put)(self.total, out)


@torch.library.custom_op("latentvid::grouped_attention", mutates_args=())
def grouped_attention(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    """The backend `grouped` on [T,A,K] and [S,A,K]; the segments' bounds are int32 [n+1]."""
    out = q.new_empty(len(q) + 1, *q.shape[1:])  # the last row takes what padded queries write
    scale = 1.0 / math.sqrt(q.shape[-1])
    for queries, keys in _groups(q, k, cu_q, cu_k):
        q_, k_, v_ = queries.heads(q).mul_(scale), keys.heads(k), keys.heads(v)
        padded, part = keys.over_heads(q.shape[1]), torch.empty_like(q_)
        space = _space(q_, keys.length)
        for b, rows in _blocks(q_, keys.length):
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
            g_[:, -queries.padded.shape[1] :].masked_fill_(queries.over_heads(q.shape[1])[..., None], 0.0)
        padded = keys.over_heads(q.shape[1])
        dq_, dk_, dv_ = torch.empty_like(q_), _KeySums(k_, q_), _KeySums(v_, q_)
        space, other = (_space(q_, keys.length) for _ in range(2))
        for b, rows in _blocks(q_, keys.length):
            of_q, of_g, of_k = q_[b, rows], g_[b, rows], k_[b]
            p = _probabilities(of_q, of_k, None if padded is None else padded[b], space)
            dv_.add(b, p, of_g)
            ds = torch.bmm(of_g, v_[b].transpose(1, 2), out=other[: p.numel()].view_as(p))
            ds = _softmax_backward(ds, p)
            torch.bmm(ds, of_k, out=dq_[b, rows])
            dk_.add(b, ds, of_q)
        queries.put(dq_.mul_(scale), dq)
        dk_.put(keys, dk)
        dv_.put(keys, dv)
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
