"""The autoencoder on a GPU, on tensors without storage: what it writes under autocast, and how it cuts clips."""

from collections import Counter

import pytest
import torch
from host_reads import moved, on_fake_cuda
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentvid import precision
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.budget import choose_cut
from latentvid.models.causal3d import StreamCache
from latentvid.models.streaming import encode_side
from latentvid.text import TextEncoder

GIB = 2**30


class Written(TorchDispatchMode):
    """Bytes of new storages on CUDA, by type."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:
                self.bytes[x.dtype] += x.numel() * x.element_size()
        return result


@pytest.mark.parametrize("shortcuts", [True, False])
def test_under_autocast_it_writes_bf16_and_gives_fp32(cuda_without_a_driver, shortcuts):
    written = {}
    with FakeTensorMode(), torch.device("cuda"):
        vae = CausalVideoAutoencoder(widths=(32, 64, 64), shortcuts=shortcuts).requires_grad_(False)
        clip, latent = torch.randn(1, 3, 9, 128, 128), torch.randn(1, 8, 3, 32, 32)
        for name, net, x in (("encode", vae.encoder, clip), ("decode", vae.decoder, latent)):
            with torch.autocast("cuda", torch.bfloat16), Written() as found:
                out = net(x, StreamCache(more=False))
            assert out.dtype == torch.float32  # the last sum is exact
            written[name] = found.bytes
    for name, found in written.items():
        assert found[torch.float32] < 0.15 * found.total(), (name, found)


def test_without_autocast_it_computes_in_the_type_of_its_weights():
    with FakeTensorMode(), torch.device("cuda"):
        for dtype in (torch.float32, torch.bfloat16):
            torch.set_default_dtype(dtype)
            try:
                vae = CausalVideoAutoencoder(widths=(8, 8, 8)).requires_grad_(False)
                assert vae.encoder(torch.randn(1, 3, 5, 16, 16), StreamCache(more=False)).dtype == dtype
            finally:
                torch.set_default_dtype(torch.float32)


def test_chunks_are_as_long_as_the_memory_of_a_gpu_allows():
    sizes = {"clips": 1, "frames": 17, "h": 45, "w": 80}
    vae = CausalVideoAutoencoder(widths=(8, 16, 16), space_strides=(2, 2)).requires_grad_(False)
    on_cpu = choose_cut(encode_side(vae), **sizes, budget=100 * GIB)
    with on_fake_cuda():
        side = encode_side(moved(vae))
        rich, poor = (choose_cut(side, **sizes, budget=n) for n in (100 * GIB, GIB // 2))
    assert rich.first == 17 and rich.later == 0  # the clip as a whole
    assert on_cpu.later < poor.later < 17 and (poor.h, poor.w) == (45, 80)


def test_prompts_are_read_in_the_type_around_on_a_gpu_and_in_fp32_on_a_cpu(cuda_without_a_driver, tiny_t5):
    text = TextEncoder.from_pretrained(str(tiny_t5))
    with torch.autocast("cpu", torch.bfloat16):
        under = text.encode(["a digit"]).states
    assert under.dtype == torch.float32 and torch.equal(under, text.encode(["a digit"]).states)
    with on_fake_cuda() as waits:
        moved(text.encoder)
        with torch.autocast("cuda", torch.bfloat16):
            text.encode(["a digit", "two digits"])
        assert {dtype for _, dtype in waits.products} == {torch.bfloat16} and not waits.reads and not waits.copies


def test_fp32_is_tf32_on_gpus_alone():
    before = torch.get_float32_matmul_precision()
    try:
        precision.choose("no", "cpu")
        assert torch.get_float32_matmul_precision() == before
        precision.choose("no", "cuda")
        assert torch.get_float32_matmul_precision() == "high"
        assert "TF32" in precision.describe("no", "cuda") and "TF32" not in precision.describe("no", "cpu")
    finally:
        torch.set_float32_matmul_precision(before)
