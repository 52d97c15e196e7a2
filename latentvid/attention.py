"""Attention over packed sequences; the only file that knows the backends.

Axes: T query tokens, S key tokens, A heads, K head width. Segment i of the queries attends to segment i of the keys.

| backend     | where                            | what                                                            |
|-------------|----------------------------------|-----------------------------------------------------------------|
| `torch`     | CUDA, fp16/bf16, torch >= 2.10   | FlashAttention inside torch (`varlen_attn`)                     |
| `fa3`, `fa4`| Hopper; Blackwell; as `torch`    | FlashAttention 3, 4 in its place, of their own packages         |
| `flash`     | CUDA, fp16/bf16                  | the flash-attn package (extra `flash`)                          |
| `efficient` | CUDA, fp32/fp16/bf16             | memory-efficient attention inside torch: the choice in fp32     |
| `flex`      | CUDA, compiled                   | causal self-attention by FlexAttention, without copies of keys  |
| `grouped`   | any device, any dtype            | segments of about equal length as one product; the CPU's choice |
| `sdpa`      | any device, any dtype            | one segment after another: the exact, slow reference            |
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .errors import UserError
from .kernels import grouped_attention
from .packing import Segments

logger = logging.getLogger(__name__)
WIDEST = 256  # a head of FlashAttention's
# FlashAttention of later generations: its package's module, what torch calls it, and the GPUs' compute capability
NEWER = {"fa3": ("flash_attn_interface", "FA3", 9), "fa4": ("flash_attn.cute", "FA4", 10)}


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


def _efficient(q: Tensor, k: Tensor, v: Tensor, layout_q: Segments, layout_kv: Segments) -> Tensor:
    # as torch.nested calls it; the sums of exponentials are for the backward pass
    kept = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return torch.ops.aten._efficient_attention_forward(
        *(x[None] for x in (q, k, v)),
        None,
        layout_q.cu_seqlens,
        layout_kv.cu_seqlens,
        layout_q.max_len,
        layout_kv.max_len,
        0.0,
        0,  # no mask
        kept,
    )[0][0]


def _beside_flex(q: Tensor, k: Tensor, v: Tensor, layout_q: Segments, layout_kv: Segments) -> Tensor:
    """Of models with `flex`, all attention but the causal one."""
    return BACKENDS[_automatic(q.device, q.dtype)](q, k, v, layout_q, layout_kv)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """`flex`: q, k and v [T,A,K] of a pack -> [T,A,K]; each token attends to what the mask says."""
    attend = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    return attend(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask)[0].transpose(0, 1)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)


def _grouped(q: Tensor, k: Tensor, v: Tensor, layout_q: Segments, layout_kv: Segments) -> Tensor:
    return grouped_attention(q, k, v, layout_q.cu_seqlens, layout_kv.cu_seqlens)


BACKENDS = {
    "torch": _torch,
    "fa3": _torch,
    "fa4": _torch,
    "flash": _flash,
    "efficient": _efficient,
    "flex": _beside_flex,
    "grouped": _grouped,
    "sdpa": _sdpa,
}


def packed_attention(q: Tensor, k: Tensor, v: Tensor, layout_q: Segments, layout_kv: Segments, backend: str) -> Tensor:
    """softmax(q k^T / sqrt(K)) v within each segment: q [T,A,K], k and v [S,A,K] -> [T,A,K]."""
    return BACKENDS[backend](q, k, v, layout_q, layout_kv)


def resolve_backend(name: str, device: torch.device | str, dtype: torch.dtype, head_width: int | None = None) -> str:
    """The backend that `name` ("auto" or a key of the table) means on this device; raises UserError if it is not there,
    or cannot take heads of that width.

    "auto" is `torch` on CUDA in half precision, or the newer kernel of this GPU where its package is installed;
    `efficient` on CUDA in fp32 (`grouped` where torch is to be deterministic, which that one is not); `grouped`
    elsewhere. All compute the same function.
    """
    device = torch.device(device)
    cuda, half = device.type == "cuda", dtype in (torch.float16, torch.bfloat16)
    found = _automatic(device, dtype) if name == "auto" else name
    if found not in BACKENDS:
        raise UserError(f"attention backend {name!r}: one of auto, {', '.join(BACKENDS)}")
    flash = found in ("torch", "flash", *NEWER)
    if flash and not (cuda and half):
        raise UserError(
            f"attention backend {name!r} needs CUDA and bf16 or fp16, got {device} and {str(dtype)[6:]}: use 'auto'"
        )
    if found == "efficient" and not (cuda and (half or dtype == torch.float32)):
        raise UserError(f"attention backend {name!r} needs CUDA, got {device} and {str(dtype)[6:]}: use 'auto'")
    if found == "flex" and not cuda:
        raise UserError(f"attention backend {name!r} needs CUDA, got {device}: use 'auto'")
    if found == "flash" and importlib.util.find_spec("flash_attn") is None:
        raise UserError("attention backend 'flash' needs the flash-attn package: pip install latentvid[flash]")
    if head_width is not None:
        _check_width(found, flash, head_width, 8 if half else 4)
    if flash and found != "flash":
        _activate(found, asked=name != "auto")
    return found


def _automatic(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        return _newest(device)
    efficient = device.type == "cuda" and dtype == torch.float32 and not torch.are_deterministic_algorithms_enabled()
    return "efficient" if efficient else "grouped"


def _check_width(backend: str, flash: bool, head_width: int, multiple: int) -> None:
    """Raises UserError for heads that a kernel refuses."""
    if flash and (head_width % multiple or head_width > WIDEST):
        raise UserError(
            f"attention heads are {head_width} wide (model.width / model.heads), and backend {backend!r} takes "
            f"multiples of {multiple} up to {WIDEST}: set model.heads for heads of 64 or 128"
        )
    if backend == "efficient" and head_width % multiple:
        raise UserError(
            f"attention heads are {head_width} wide (model.width / model.heads), and backend 'efficient' takes "
            f"multiples of {multiple}: set model.heads for heads of 64 or 128, or attention: grouped, which is slow"
        )


@cache
def _newest(device: torch.device) -> str:
    """`fa3` or `fa4` where the GPU is of that generation and the package is there, else `torch`."""
    there = {name: generation for name, (module, _, generation) in NEWER.items() if _installed(module)}
    if there:  # else the GPU need not be asked
        here, _ = torch.cuda.get_device_capability(device)
        for name, generation in there.items():
            if generation == here and _activate(name, asked=False):
                return name
    return "torch"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _activate(name: str, asked: bool) -> bool:
    """Makes torch run this FlashAttention, in the whole process; False where it cannot, unless it was asked for."""
    attention = torch.nn.attention
    active = getattr(attention, "current_flash_attention_impl", lambda: None)()
    if name == "torch":
        if active is not None:
            attention.restore_flash_attention_impl()
        return True
    module, implementation, _ = NEWER[name]
    if active == implementation:
        return True
    try:
        if not _installed(module):
            raise UserError(f"attention backend {name!r} needs the package that has the module {module}")
        if not hasattr(attention, "activate_flash_attention_impl"):
            raise UserError(f"attention backend {name!r} needs a newer torch: this is {torch.__version__}")
        attention.activate_flash_attention_impl(implementation)
    except Exception as error:  # whatever the package's kernels raise as they load
        if asked:
            raise (
                error if isinstance(error, UserError) else UserError(f"attention backend {name!r}: {error}")
            ) from error
        logger.warning("attention: %s is installed and cannot be used (%s): torch's own kernel is", module, error)
        return False
    return True


def describe_backend(name: str, device: torch.device | str) -> str:
    """A resolved backend in words, with the kernel that runs."""
    kernels = {
        "torch": f"FlashAttention in torch {torch.__version__}, asked for by name",
        "fa3": "FlashAttention 3 by torch's varlen_attn",
        "fa4": "FlashAttention 4 by torch's varlen_attn",
        "flash": "the flash-attn package",
        "efficient": f"memory-efficient attention in torch {torch.__version__}",
        "flex": "FlexAttention where it is causal, else what auto would take",
        "grouped": "batched products of segments of about equal length",
        "sdpa": "one segment after another",
    }
    return f"attention on {torch.device(device).type} by {name}: {kernels[name]}"
