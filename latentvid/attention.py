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

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .errors import UserError
from .kernels import grouped_attention
from .packing import Segments


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

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # torch 2.15 would choose by the longest segment: a graph for each
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
