"""The row of gpu.py that compares attention backends. Axes: T tokens, A heads, K head width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gpu_bench import Bench
from torch import Tensor

from latentvid.attention import NEWER, describe_backend, packed_attention, resolve_backend
from latentvid.errors import UserError
from latentvid.packing import Packed

TOLERANCE = 2.0  # a backend's error over that of sdpa in the same type, both against sdpa in a wider one
TYPES = {"bf16": (torch.bfloat16, torch.float32), "fp32": (torch.float32, torch.float64)}


def attention(
    bench: Bench,
    *,
    lengths: list[int],
    text: int,
    heads: int,
    head: int,
    clip: int,
    clips: int,
    dtype: str = "bf16",
) -> dict:
    """Each backend that is there against sdpa in a wider type, forward and backward, over segments of `lengths`; and
    the speed of both passes over `clips` segments of `clip` tokens, for sdpa too."""
    narrow, wide = TYPES[dtype]
    layout, text_layout = Packed.of_lengths(lengths), Packed.of_lengths([text + i for i in range(len(lengths))])
    found: dict[str, Any] = {"backends": {}, "absent": {}}
    for name, kv in (("self", layout), ("cross", text_layout)):
        sizes = (layout.tokens, kv.tokens, kv.tokens, layout.tokens)
        q, k, v, grad = (_heads(n, heads, head, bench.device, narrow) for n in sizes)
        layouts = layout.to(bench.device), kv.to(bench.device)
        exact = _with_gradients([x.to(wide) for x in (q, k, v, grad)], *layouts, "sdpa")
        bound = _errors(_with_gradients([q, k, v, grad], *layouts, "sdpa"), exact)
        for backend in ("torch", "fa3", "fa4", "flash", "efficient", "grouped"):
            try:
                resolve_backend(backend, bench.device, narrow, head)
                error = _errors(_with_gradients([q, k, v, grad], *layouts, backend), exact)
            except UserError as reason:
                found["absent"][backend] = str(reason)
                continue
            except Exception as reason:  # the others may still work
                found["absent"][backend] = f"FAILS: {type(reason).__name__}: {' '.join(str(reason).split())[:300]}"
                continue
            agrees = all(e <= TOLERANCE * b + 1e-6 for e, b in zip(error, bound, strict=True))
            found["backends"].setdefault(backend, {})[name] = {"error": error, "sdpa": bound, "agrees": agrees}
    equal = Packed.of_lengths([clip] * clips).to(bench.device)
    flops = 3 * 4 * heads * head * clips * clip**2  # the backward pass is two of the forward pass
    rate = bench.product_rate()
    for backend in found["absent"]:  # one that works in one place alone does not
        found["backends"].pop(backend, None)
    found["agree"] = all(row[name]["agrees"] for row in found["backends"].values() for name in ("self", "cross"))
    for backend in (*found["backends"], "sdpa"):
        if bench.cuda and backend == "grouped":
            continue  # made for CPUs
        inputs = [_heads(equal.tokens, heads, head, bench.device, narrow) for _ in range(4)]
        if backend in ("torch", *NEWER):
            resolve_backend(backend, bench.device, narrow)  # the kernel that is active, of the three
        taken = bench.seconds(lambda b=backend, i=inputs: _with_gradients(i, equal, equal, b))
        row = found["backends"].setdefault(backend, {})
        row |= {"seconds": taken, "of_matmul": flops / taken / rate}
    automatic = resolve_backend("auto", bench.device, narrow, head)
    return found | {"matmul": rate, "auto": describe_backend(automatic, bench.device)}


def _heads(tokens: int, heads: int, head: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, heads, head, device=device, dtype=dtype)


def _with_gradients(tensors: Sequence[Tensor], layout: Packed, kv: Packed, backend: str) -> list[Tensor]:
    """Output and gradients of q, k, v for the last tensor as the output's gradient."""
    *inputs, grad = tensors
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = packed_attention(*inputs, layout, kv, backend)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def _errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Root mean squared difference of each over the exact one's root mean square."""
    return [float((a.to(b) - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
