"""Convolutions of small clips on CPUs: what runs instead equals PyTorch's, and stands just where that is slow."""

import pytest
import torch
import torch.nn.functional as F

from latentvid import kernels
from latentvid.cpu import convolution
from latentvid.models.causal3d import CausalConv3d, StreamCache

KERNELS = [(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1), (2, 3, 1)]
NATIVE = {torch._C._ConvBackend.Slow3d, torch._C._ConvBackend.Slow2d}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("last", [True, False])
def test_it_is_the_convolution_with_its_gradients(kernel, frames, last):
    form = torch.channels_last_3d if last else torch.contiguous_format
    x = torch.randn(1, 3, frames + kernel[0] - 1, 5, 4, dtype=torch.float64).contiguous(memory_format=form)
    weight = torch.randn(6, 3, *kernel, dtype=torch.float64).contiguous(memory_format=form)
    given = x, weight, torch.randn(6, dtype=torch.float64)
    given = [tensor.requires_grad_() for tensor in given]
    padding = kernel[1] // 2, kernel[2] // 2
    expected = F.conv3d(*given, padding=(0, *padding))
    found = convolution.conv3d(*given, padding)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    grads = torch.autograd.grad(found, given, grad)
    for mine, its in zip(grads, torch.autograd.grad(expected, given, grad), strict=True):
        torch.testing.assert_close(mine, its)
    assert grads[1].stride() == weight.stride()  # or DDP copies it, with a warning


@pytest.mark.parametrize("kernel", [*KERNELS, (1, 5, 5)])
@pytest.mark.parametrize("shape", [(1, 8, 5, 6, 6), (2, 8, 5, 6, 6), (1, 32, 17, 48, 8), (16, 4, 1, 4, 4)])
def test_it_stands_where_pytorch_takes_its_own_kernel(shape, kernel):
    x, weight = torch.randn(shape), torch.randn(4, shape[1], *kernel)
    padding = [kernel[0] // 2, kernel[1] // 2, kernel[2] // 2]
    taken = torch._C._select_conv_backend(x, weight, None, [1] * 3, padding, [1] * 3, False, [0] * 3, 1, None)
    assert convolution.unfolds(x, weight) == (taken in NATIVE)


def test_the_autoencoders_convolutions_take_it_in_eager_mode_alone(monkeypatch):
    taken = []
    monkeypatch.setattr(convolution, "conv3d", lambda *given: taken.append(given) or torch.zeros(()))
    conv, cache = CausalConv3d(4, 4), StreamCache(more=False)
    small, two = torch.randn(1, 4, 3, 5, 5), torch.randn(2, 4, 3, 5, 5)
    conv(small, cache)
    assert len(taken) == 1
    conv(two, cache)
    with torch.autocast("cpu", torch.bfloat16):
        conv(small, cache)
    monkeypatch.setattr(kernels, "plain", True)
    conv(small, cache)
    assert len(taken) == 1
