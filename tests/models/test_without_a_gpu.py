"""What a GPU would be given, on tensors of a CUDA device without storage; its attention path with a stand-in."""

import copy
from collections import defaultdict

import pytest
import torch
import torch.nn.attention.varlen as varlen
from host_reads import ONE_DTYPE, run_backward
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from latentvid.models import transformer
from latentvid.models.compiling import compile_blocks
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

pytestmark = pytest.mark.usefixtures("cuda_without_a_driver")
CONFIG = {"latent_channels": 4, "width": 48, "depth": 2, "heads": 2, "text_width": 24}
GRIDS = [(2, 4, 4), (1, 2, 4), (3, 2, 2)]


class Watch(TorchDispatchMode):
    """Raises where a kernel would; counts the fp32 elements made of what has `size` elements or more."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.attentions, self.wide = size, 0, defaultdict(int)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [args[i] for i in ONE_DTYPE.get(func, ()) if i < len(args) and isinstance(args[i], Tensor)]
        assert len({x.dtype for x in given}) <= 1, f"{func} of {[x.dtype for x in given]}"
        self.attentions += func is torch.ops.torch_attn._varlen_attn.default
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor) and x.dtype == torch.float32 and x.numel() >= self.size:
                self.wide[str(func)] += 1
        return result


@pytest.mark.parametrize("attention", ["full", "factorised", "causal"])
def test_both_passes_in_bf16_on_cuda(attention):
    layout, words = Packed.of(GRIDS), Packed.of_lengths([5, 3, 1])
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        model = VideoDiT(**CONFIG, attention=attention)
        layout, words = layout.to("cuda"), words.to("cuda")
        tokens, text = torch.randn(layout.tokens, 16), torch.randn(words.tokens, 24)
        with Watch(size=layout.tokens * 48) as watch:
            with torch.autocast("cuda", torch.bfloat16):
                out = model(tokens, torch.rand(layout.frames), text, layout, words)
            forward = dict(watch.wide)
            run_backward(out, torch.ones_like(out))
    assert out.dtype == torch.bfloat16 and out.device.type == "cuda"
    assert watch.attentions == 4  # of itself and the text in each block, by the kernel for packs
    assert not forward  # the blocks' tokens are bf16 all along
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.dtype == torch.float32 and p.grad.shape == p.shape, name
        assert p.grad.device.type == "cuda", name


def attend(q, k, v, cu_q, cu_k, *_, **__):
    """varlen_attn's forward pass, for CPUs."""
    parts = [p @ value for _, _, value, p in _segments(q, k, v, cu_q, cu_k)]
    state = torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)
    return torch.cat(parts, dim=1).transpose(0, 1).contiguous(), *state


def attend_back(grad, q, k, v, out, lse, cu_q, cu_k, *_, **__):
    found, scale = [], q.shape[-1] ** -0.5
    grads = grad.transpose(0, 1).split(cu_q.diff().tolist(), dim=1)
    for (query, key, value, p), g in zip(_segments(q, k, v, cu_q, cu_k), grads, strict=True):
        dp = g @ value.mT
        ds = scale * p * (dp - (p * dp).sum(-1, keepdim=True))
        found.append((ds @ key, ds.mT @ query, p.mT @ g))
    return tuple(torch.cat(parts, dim=1).transpose(0, 1).contiguous() for parts in zip(*found, strict=True))


def _segments(q, k, v, cu_q, cu_k):
    """Queries, keys and values [A,L,K] of each segment, and probabilities."""
    counts = cu_q.diff().tolist(), cu_k.diff().tolist(), cu_k.diff().tolist()
    split = [x.transpose(0, 1).split(n, dim=1) for x, n in zip((q, k, v), counts, strict=True)]
    for query, key, value in zip(*split, strict=True):
        yield query, key, value, (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_path_of_gpus_gives_what_the_reference_does(monkeypatch, compiled):
    varlen._varlen_attn.register_kernel("cpu", attend)  # stays: torch has none for CPUs
    varlen._varlen_attn_backward.register_kernel("cpu", attend_back)
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = VideoDiT(**{**CONFIG, "depth": 1 if compiled else 2})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    other = copy.deepcopy(model)
    if compiled:
        compile_blocks(other, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=compiled):
        for grids in (GRIDS, [(2, 2, 2), (1, 4, 2), (2, 2, 4), (1, 2, 2)]):
            layout, words = Packed.of(grids), Packed.of_lengths([5 + i for i in range(len(grids))])
            inputs = torch.randn(layout.tokens, 16), torch.rand(layout.frames), torch.randn(words.tokens, 24)
            outs = []
            for net, backend in ((model, "sdpa"), (other, "torch")):
                monkeypatch.setattr(transformer, "resolve_backend", lambda *_, b=backend: b)
                net.zero_grad()
                outs.append(net(*inputs, layout, words))
                outs[-1].square().mean().backward()
            torch.testing.assert_close(*outs)
            for p, q in zip(model.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
