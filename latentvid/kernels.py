"""What runs on CPUs instead of a plain formula: the only file that imports `latentvid.cpu`.

A formula of the model stands where it is used, decorated with `or_cpu_kernel`. On CPUs, in eager mode, the function of
the same name in `latentvid.cpu.fused` runs, which is faster and keeps less for the backward pass. The formula runs on
any other device, and under `torch.compile`, which fuses it and decides itself what to keep.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu import convolution, fused, grouped
from .cpu.convolution import unfolds
from .cpu.rematerialise import rematerialising

plain = False  # True: formulas run on CPUs too, as on other devices (dry runs estimate GPUs so)


def or_cpu_kernel(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The formula; on CPUs the kernel of its name. The first argument is a tensor."""
    kernel = getattr(fused, formula.__name__)

    @functools.wraps(formula)
    def chosen(x: Tensor, *rest, **options) -> Tensor:
        return (kernel if _eager_on_cpu(x) else formula)(x, *rest, **options)

    return chosen


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    """The backend `grouped`: q [T,A,K], k and v [S,A,K], bounds of their segments int32 [N+1] -> [T,A,K]."""
    with rematerialising() if _eager_on_cpu(q) else nullcontext():
        return grouped.grouped_attention(q, k, v, cu_q, cu_k)[0]


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """3D convolution, stride 1, padded in height and width: x [B,C,F,h,w], weight [C',C,kt,kh,kw]."""
    if _eager_on_cpu(x) and not torch.is_autocast_enabled("cpu") and len(x) == 1 and unfolds(x, weight):
        return convolution.conv3d(x, weight, bias, padding)
    return F.conv3d(x, weight, bias, padding=(0, *padding))


def _eager_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not plain and not torch.compiler.is_compiling()
