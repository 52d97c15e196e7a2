"""Attention over packed sequences; the only file that knows the backends.

Axes: T query tokens, S key tokens, A heads, K head width. Segment i of the queries attends to segment i of the keys.

| backend   | where                          | what                                                               |
|-----------|--------------------------------|--------------------------------------------------------------------|
| `torch`   | CUDA, fp16/bf16, torch >= 2.10 | FlashAttention inside torch (`varlen_attn`)                        |
| `flash`   | CUDA, fp16/bf16                | the flash-attn package (extra `flash`)                             |
| `grouped` | any device, any dtype          | segments of equal length as one batched product; the CPU's choice  |
| `sdpa`    | any device, any dtype          | one segment after another: the exact, slow reference               |
"""

from __future__ import annotations

import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .packing import Packed

BLOCK_ELEMENTS = 1 << 22  # scores held at a time by `grouped`: 8 MB in bf16, within a CPU's last-level cache


def _sdpa(q: Tensor, k: Tensor, v: Tensor, layout_q: Packed, layout_kv: Packed) -> Tensor:
    out = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in segment))[0].transpose(0, 1)
        for segment in zip(
            q.split(layout_q.lengths), k.split(layout_kv.lengths), v.split(layout_kv.lengths), strict=True
        )
    ]
    return torch.cat(out)


def _torch(q: Tensor, k: Tensor, v: Tensor, layout_q: Packed, layout_kv: Packed) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(q, k, v, layout_q.cu_seqlens, layout_kv.cu_seqlens, layout_q.max_len, layout_kv.max_len)


def _flash(q: Tensor, k: Tensor, v: Tensor, layout_q: Packed, layout_kv: Packed) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        q, k, v, layout_q.cu_seqlens, layout_kv.cu_seqlens, layout_q.max_len, layout_kv.max_len
    )


def _grouped(q: Tensor, k: Tensor, v: Tensor, layout_q: Packed, layout_kv: Packed) -> Tensor:
    return torch.ops.latentvid.grouped_attention(q, k, v, layout_q.cu_seqlens, layout_kv.cu_seqlens)


BACKENDS = {"torch": _torch, "flash": _flash, "grouped": _grouped, "sdpa": _sdpa}


def packed_attention(q: Tensor, k: Tensor, v: Tensor, layout_q: Packed, layout_kv: Packed, backend: str) -> Tensor:
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


def _groups(cu_q: Tensor, cu_k: Tensor) -> list[tuple[list[int], list[int], int, list[int]]]:
    """Segments by query length: (query starts, key starts, query length, key lengths) of each group."""
    starts_q, starts_k = cu_q.tolist(), cu_k.tolist()
    groups: dict[int, tuple[list[int], list[int], int, list[int]]] = {}
    for i in range(len(starts_q) - 1):
        length = starts_q[i + 1] - starts_q[i]
        group = groups.setdefault(length, ([], [], length, []))
        group[0].append(starts_q[i])
        group[1].append(starts_k[i])
        group[3].append(starts_k[i + 1] - starts_k[i])
    return list(groups.values())


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [T,A,K] at index [n,L] as a batch of heads [n,A,L,K]."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def _blocks(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor):
    """(query index [n,L], key index [n,M], key mask [n,1,1,M] or None) of pieces with at most BLOCK_ELEMENTS scores.

    Groups are cut into fewer segments, and segments longer than a block into runs of queries.
    """
    heads = q.shape[1]
    if len(cu_q) != len(cu_k) or int(cu_q[-1]) != len(q) or int(cu_k[-1]) != len(k):
        raise ValueError(
            f"layouts of {len(cu_q) - 1} segments with {int(cu_q[-1])} queries and {len(cu_k) - 1} segments with "
            f"{int(cu_k[-1])} keys do not fit {len(q)} queries and {len(k)} keys"
        )
    for starts_q, starts_k, length, lengths_k in _groups(cu_q, cu_k):
        longest = max(lengths_k)
        segments = max(1, BLOCK_ELEMENTS // (heads * length * longest))
        queries = min(length, max(1, BLOCK_ELEMENTS // (heads * longest)))
        for i in range(0, len(starts_q), segments):
            first_k = torch.tensor(starts_k[i : i + segments], device=q.device)
            count_k = torch.tensor(lengths_k[i : i + segments], device=q.device)
            offset = torch.arange(max(lengths_k[i : i + segments]), device=q.device)
            index_k = first_k[:, None] + torch.minimum(offset, count_k[:, None] - 1)
            ragged = len(set(lengths_k[i : i + segments])) > 1
            mask = (offset >= count_k[:, None])[:, None, None, :] if ragged else None
            first_q = torch.tensor(starts_q[i : i + segments], device=q.device)
            for j in range(0, length, queries):
                index_q = first_q[:, None] + torch.arange(j, min(j + queries, length), device=q.device)
                yield index_q, index_k, mask


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of scaled scores: q [n,A,L,K], k [n,A,M,K] -> [n,A,L,M]."""
    scores = torch.matmul(q * (1.0 / math.sqrt(q.shape[-1])), k.transpose(-1, -2))
    if mask is not None:
        scores.masked_fill_(mask, float("-inf"))
    return torch.softmax(scores, dim=-1)


@torch.library.custom_op("latentvid::grouped_attention", mutates_args=())
def _grouped_forward(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    out = torch.empty_like(q)
    for index_q, index_k, mask in _blocks(q, k, cu_q, cu_k):
        p = _probabilities(_take(q, index_q), _take(k, index_k), mask)
        part = torch.matmul(p, _take(v, index_k))  # [n,A,L,K]
        out.index_copy_(0, index_q.flatten(), part.transpose(1, 2).flatten(0, 1))
    return out


@_grouped_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("latentvid::grouped_attention_backward", mutates_args=())
def _grouped_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities are computed again rather than kept: memory stays linear in the tokens."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    scale = 1.0 / math.sqrt(q.shape[-1])
    for index_q, index_k, mask in _blocks(q, k, cu_q, cu_k):
        q_, k_, v_, g_ = _take(q, index_q), _take(k, index_k), _take(v, index_k), _take(grad, index_q)
        p = _probabilities(q_, k_, mask)
        dp = torch.matmul(g_, v_.transpose(-1, -2))
        ds = p * (dp - (p * dp).sum(-1, keepdim=True))
        dq.index_copy_(0, index_q.flatten(), torch.matmul(ds, k_ * scale).transpose(1, 2).flatten(0, 1))
        # repeated indices (keys past a segment's end) carry p = 0, so they add nothing
        dk.index_add_(
            0, index_k.flatten(), torch.matmul(ds.transpose(-1, -2), q_ * scale).transpose(1, 2).flatten(0, 1)
        )
        dv.index_add_(0, index_k.flatten(), torch.matmul(p.transpose(-1, -2), g_).transpose(1, 2).flatten(0, 1))
    return dq, dk, dv


@_grouped_backward.register_fake
def _(grad, q, k, v, cu_q, cu_k):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor):
    return *torch.ops.latentvid.grouped_attention_backward(grad, *ctx.saved_tensors), None, None


_grouped_forward.register_autograd(_backward, setup_context=_setup)
