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
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .packing import Segments

QUERY_MULTIPLE = 32  # segments whose lengths round up to the same multiple are one group: few, large products
KEY_MULTIPLE = 16  # keys are padded (and masked) to it: the CPU's softmax is 8 times slower on rows of 12 than of 16
BLOCK_ELEMENTS = 1 << 22  # scores held at a time by `grouped`: 8 MB in bf16, within a CPU's last-level cache


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
    return torch.ops.latentvid.grouped_attention(q, k, v, layout_q.cu_seqlens, layout_kv.cu_seqlens)


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
# A custom operator, so that compiled blocks hold it as one opaque node: no graph break, no recompile per layout.


class _Block(NamedTuple):
    """A piece of the work: n segments' queries (some or all) against all their keys.

    index_q [n,L], index_k [n,M]: rows of q and k; padded queries point one past the end, padded keys at a real one.
    mask_q [n,1,L,1], mask_k [n,1,1,M]: True where padded; None where nothing is.
    """

    index_q: Tensor
    index_k: Tensor
    mask_q: Tensor | None
    mask_k: Tensor | None


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _padded_index(starts: Tensor, counts: Tensor, offset: Tensor, beyond: Tensor) -> tuple[Tensor, Tensor | None]:
    """starts + offset [n,L], with `beyond` [n,1] where the offset is past a segment's count, and where that is."""
    past = offset >= counts[:, None]
    return torch.where(past, beyond, starts[:, None] + offset), past if bool(past.any()) else None


def _blocks(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor) -> Iterator[_Block]:
    """Segments of about equal length together, in pieces of at most BLOCK_ELEMENTS scores.

    Groups are cut into fewer segments, and segments longer than a block into runs of queries.
    """
    heads = q.shape[1]
    starts_q, starts_k, counts_q, counts_k = (x.long() for x in (cu_q[:-1], cu_k[:-1], cu_q.diff(), cu_k.diff()))
    groups: dict[int, list[int]] = defaultdict(list)
    for i, count in enumerate(counts_q.tolist()):
        groups[_round_up(count, QUERY_MULTIPLE)].append(i)
    for members in groups.values():
        member = torch.tensor(members, device=q.device)
        length, longest = int(counts_q[member].max()), _round_up(int(counts_k[member].max()), KEY_MULTIPLE)
        segments = max(1, BLOCK_ELEMENTS // (heads * length * longest))
        queries = min(length, max(1, BLOCK_ELEMENTS // (heads * longest)))
        for part in member.split(segments):
            n_q, n_k = counts_q[part], counts_k[part]
            offset_k = torch.arange(_round_up(int(n_k.max()), KEY_MULTIPLE), device=q.device)
            index_k, mask_k = _padded_index(starts_k[part], n_k, offset_k, starts_k[part, None])
            for offset_q in torch.arange(int(n_q.max()), device=q.device).split(queries):
                index_q, mask_q = _padded_index(starts_q[part], n_q, offset_q, torch.full_like(part, len(q))[:, None])
                yield _Block(
                    index_q,
                    index_k,
                    None if mask_q is None else mask_q[:, None, :, None],
                    None if mask_k is None else mask_k[:, None, None, :],
                )


def _check_fit(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor) -> None:
    if len(cu_q) != len(cu_k) or int(cu_q[-1]) != len(q) or int(cu_k[-1]) != len(k):
        raise ValueError(
            f"layouts of {len(cu_q) - 1} segments with {int(cu_q[-1])} queries and {len(cu_k) - 1} segments with "
            f"{int(cu_k[-1])} keys do not fit {len(q)} queries and {len(k)} keys"
        )


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [T,A,K] at index [n,L] as a batch of heads [n,A,L,K]; one past the end reads the last row."""
    rows = index.clamp(max=len(x) - 1).flatten()
    return x.index_select(0, rows).unflatten(0, index.shape).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    """[n,A,L,K] -> [n*L,A,K], the order of a flattened index."""
    return x.transpose(1, 2).flatten(0, 1)


def _probabilities(q: Tensor, k: Tensor, mask_k: Tensor | None) -> Tensor:
    """Softmax of scaled scores, in fp32 at least: q [n,A,L,K], k [n,A,M,K] -> [n,A,L,M]."""
    scores = torch.matmul(q * (1.0 / math.sqrt(q.shape[-1])), k.transpose(-1, -2))
    if mask_k is not None:
        scores.masked_fill_(mask_k, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("latentvid::grouped_attention", mutates_args=())
def _grouped_forward(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    _check_fit(q, k, cu_q, cu_k)
    out = q.new_empty(len(q) + 1, *q.shape[1:])  # the last row takes what padded queries write
    for block in _blocks(q, k, cu_q, cu_k):
        p = _probabilities(_take(q, block.index_q), _take(k, block.index_k), block.mask_k)
        part = torch.matmul(p.to(v.dtype), _take(v, block.index_k))  # [n,A,L,K]
        out.index_copy_(0, block.index_q.flatten(), _rows(part))
    return out[:-1].clone()


@_grouped_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("latentvid::grouped_attention_backward", mutates_args=())
def _grouped_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities are computed again rather than kept: memory stays linear in the tokens."""
    wide = torch.promote_types(q.dtype, torch.float32)
    dq = q.new_empty(len(q) + 1, *q.shape[1:])
    dk, dv = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)  # sums over blocks of queries
    scale = 1.0 / math.sqrt(q.shape[-1])
    for block in _blocks(q, k, cu_q, cu_k):
        q_, g_ = _take(q, block.index_q), _take(grad, block.index_q)
        k_, v_ = _take(k, block.index_k), _take(v, block.index_k)
        p = _probabilities(q_, k_, block.mask_k)
        if block.mask_q is not None:  # with p = 0 a padded query adds nothing to any gradient
            p.masked_fill_(block.mask_q, 0.0)
        dp = torch.matmul(g_, v_.transpose(-1, -2)).to(wide)
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, wide).to(q.dtype)
        dq.index_copy_(0, block.index_q.flatten(), _rows(torch.matmul(ds, k_ * scale)))
        # repeated indices (padded keys) carry p = 0, so they add nothing
        for sums, part in ((dk, ds.transpose(-1, -2) @ (q_ * scale)), (dv, p.to(q.dtype).transpose(-1, -2) @ g_)):
            sums.index_add_(0, block.index_k.flatten(), _rows(part).to(wide))
    return dq[:-1].clone(), dk.to(k.dtype), dv.to(v.dtype)


@_grouped_backward.register_fake
def _(grad, q, k, v, cu_q, cu_k):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor):
    return *torch.ops.latentvid.grouped_attention_backward(grad, *ctx.saved_tensors), None, None


_grouped_forward.register_autograd(_backward, setup_context=_setup)
