"""3D convolutions of one small clip as 2D ones over its frames.

For these PyTorch takes a kernel of its own that unfolds the input, at a quarter to a third of the speed that oneDNN's
2D convolution reaches in both passes.

Axes: C channels, F frames, h w height and width; kt kh kw the kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unfolds(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch takes its own kernel for this convolution on a CPU: x [B,C,...], weight [C',C,...].

    `ConvParams::use_mkldnn` in its aten/src/ATen/native/Convolution.cpp, for stride 1 and one group.
    """
    if x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    kernel = weight.shape[-2:]
    pointwise = kernel.numel() == 1 and torch.get_num_threads() == 1 and len(x) < 16
    small = len(x) == 1 and min(kernel) <= 3 and x.shape[:4].numel() <= 20480
    return x.dtype != torch.float32 or pointwise or small


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """x [1,C,F,h,w], weight [C',C,kt,kh,kw] -> [1,C',F-kt+1,h',w']; padding of height and width alone, stride 1."""
    out, _, kt, *kernel = weight.shape
    frames = x.shape[2] - kt + 1
    x = x[0].transpose(0, 1)  # [F,C,h,w]
    if kt > 1:  # the frames that the kernel sees, as channels
        x = torch.cat([x[t : t + frames] for t in range(kt)], dim=1)
    weight = _in_its_layout(weight).transpose(1, 2).reshape(out, -1, *kernel)  # [C',kt*C,kh,kw]
    if kernel == [1, 1]:
        y = F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    else:
        y = F.conv2d(x, weight, bias, padding=padding)
    return y.transpose(0, 1)[None]


def _in_its_layout(weight: Tensor) -> Tensor:
    """The weight, whose gradient will have its strides: DDP copies others, and warns."""
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return weight
    weight = weight.view_as(weight)
    size, stride = weight.shape, weight.stride()
    weight.register_hook(lambda grad: grad.new_empty_strided(size, stride).copy_(grad))
    return weight
