"""Which kernel attends on CUDA, on tensors without storage; the one for fp32 with a stand-in that computes on CPUs."""

from collections import Counter

import pytest
import torch
import torch.nn.attention.varlen as varlen
from host_reads import run_backward
from test_attention import inputs, run
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from latentvid import attention
from latentvid.attention import packed_attention, resolve_backend
from latentvid.errors import UserError
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

CUDA = torch.device("cuda")
STAND_IN = torch.library.Library("aten", "IMPL")
EFFICIENT = torch.ops.aten._efficient_attention_forward.default


def segments(q, k, v, cu_q, cu_k):
    """Queries, keys and values [A,L,K] of each segment of [1,T,A,K], and probabilities."""
    counts = [cu.diff().tolist() for cu in (cu_q, cu_k, cu_k)]
    split = [x[0].transpose(0, 1).split(n, dim=1) for x, n in zip((q, k, v), counts, strict=True)]
    for query, key, value in zip(*split, strict=True):
        yield query, key, value, (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)


def joined(parts):
    return torch.cat(parts, dim=1).transpose(0, 1)[None].contiguous()


def forward(q, k, v, bias, cu_q, cu_k, max_q, max_k, dropout, mask, kept=False, **_):
    assert bias is None and dropout == 0 and mask == 0
    assert (max_q, max_k) == tuple(int(cu.diff().max()) for cu in (cu_q, cu_k))
    out = joined([p @ value for _, _, value, p in segments(q, k, v, cu_q, cu_k)])
    none = torch.zeros((), dtype=torch.int64)
    return out, q.new_zeros(1, q.shape[2], q.shape[1] if kept else 0), none, none, max_q, max_k


def backward(grad, q, k, v, bias, out, cu_q, cu_k, max_q, max_k, sums, *_, **__):
    assert sums.shape[2] == q.shape[1]  # it was kept
    found, grads = [], grad[0].transpose(0, 1).split(cu_q.diff().tolist(), dim=1)
    for (query, key, value, p), g in zip(segments(q, k, v, cu_q, cu_k), grads, strict=True):
        dp = g @ value.mT
        ds = query.shape[-1] ** -0.5 * p * (dp - (p * dp).sum(-1, keepdim=True))
        found.append((ds @ key, ds.mT @ query, p.mT @ g))
    return *map(joined, zip(*found, strict=True)), torch.empty(0)


STAND_IN.impl("_efficient_attention_forward", forward, "CPU")  # stays: torch has none for CPUs
STAND_IN.impl("_efficient_attention_backward", backward, "CPU")


@pytest.mark.parametrize("of_k", [[3, 5, 1, 3], [2, 2, 4, 7]])
def test_efficient_is_given_what_the_reference_is(of_k):
    tensors, layouts = inputs([3, 5, 1, 3], of_k)
    for found, exact in zip(run("efficient", tensors, layouts), run("sdpa", tensors, layouts), strict=True):
        torch.testing.assert_close(found, exact)
    with torch.no_grad():  # nothing is kept for a backward pass
        alone = packed_attention(*tensors, *layouts, "efficient")
    torch.testing.assert_close(alone, run("sdpa", tensors, layouts)[0])


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def test_fp32_on_cuda_takes_one_kernel_whatever_the_pack():
    """Not a block of a CPU's cache after another, nor one after the host has read the bounds."""
    calls = []
    with FakeTensorMode(), CUDA:
        model = VideoDiT(latent_channels=4, width=48, depth=2, heads=2, text_width=24).requires_grad_(False)
        for grids in ([(2, 4, 4)], [(3, 32, 32), (1, 2, 4)] * 20):
            layout, words = Packed.of(grids).to(CUDA), Packed.of_lengths([5] * len(grids)).to(CUDA)
            given = torch.randn(layout.tokens, 16), torch.rand(layout.frames), torch.randn(words.tokens, 24)
            with Counting() as counting:
                model(*given, layout, words)
            calls.append(counting.calls)
    assert calls[0][EFFICIENT] == 4  # of itself and the text in each block
    assert calls[0] == calls[1]


def test_both_passes_in_fp32_on_cuda():
    with FakeTensorMode(), CUDA:
        model = VideoDiT(latent_channels=4, width=48, depth=1, heads=2, text_width=24)
        layout, words = Packed.of([(2, 4, 4), (1, 2, 4)]).to(CUDA), Packed.of_lengths([5, 3]).to(CUDA)
        with Counting() as counting:
            out = model(torch.randn(layout.tokens, 16), torch.rand(3), torch.randn(8, 24), layout, words)
            run_backward(out, torch.ones_like(out))
    assert counting.calls[EFFICIENT] == counting.calls[torch.ops.aten._efficient_attention_backward.default] == 2
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape and p.grad.dtype == torch.float32, name


def test_flash_runs_where_torch_would_take_cudnn(monkeypatch):
    """cuDNN makes a plan for each total of tokens, which no two packs share."""
    if not hasattr(varlen, "_select_backend"):
        pytest.skip("this torch has FlashAttention alone")
    chosen, select = [], varlen._select_backend
    monkeypatch.setattr(varlen, "_cudnn_rejection_reasons", lambda *_, **__: [])  # as on a Hopper GPU
    monkeypatch.setattr(varlen, "_select_backend", lambda *a, **k: chosen.append(select(*a, **k)) or chosen[-1])
    with FakeTensorMode(allow_non_fake_inputs=True):
        (q, k, v), (layout, _) = inputs([200, 300], [200, 300], width=8, dtype=torch.bfloat16, device="cuda")
        packed_attention(q, k, v, layout, layout, "torch")
        varlen.varlen_attn(q, k, v, layout.cu_seqlens, layout.cu_seqlens, layout.max_len, layout.max_len)
    assert chosen == [varlen._FLASH_ATTENTION_BACKEND, varlen._CUDNN_ATTENTION_BACKEND]


@pytest.fixture
def installed(monkeypatch):
    """`installed(generation, *modules)`: a GPU, and the packages that are there; gives what torch was told to run."""

    def make(generation, *modules, fails=False):
        told = []

        def activate(name):
            if fails:
                raise OSError("libcudart.so.99: cannot open")
            told.append(name)

        monkeypatch.setattr(attention, "_installed", lambda module: module in modules)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (generation, 0))
        monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activate, raising=False)
        monkeypatch.setattr(
            torch.nn.attention, "current_flash_attention_impl", lambda: told[-1] if told else None, raising=False
        )
        monkeypatch.setattr(
            torch.nn.attention, "restore_flash_attention_impl", lambda: told.append(None), raising=False
        )
        attention._newest.cache_clear()
        return told

    yield make
    attention._newest.cache_clear()


def auto(dtype=torch.bfloat16):
    return resolve_backend("auto", CUDA, dtype)


def test_auto_takes_the_newest_flash_of_this_gpu(installed):
    told = installed(9, "flash_attn_interface", "flash_attn.cute")
    assert auto() == "fa3" and auto() == "fa3" and told == ["FA3"]
    assert resolve_backend("torch", CUDA, torch.bfloat16) == "torch" and told[-1] is None  # back to torch's own
    told = installed(10, "flash_attn_interface", "flash_attn.cute")
    assert auto() == "fa4" and told == ["FA4"]
    assert installed(8, "flash_attn_interface") == [] and auto() == "torch"
    assert installed(9) == [] and auto() == "torch"
    assert "FlashAttention 3" in attention.describe_backend("fa3", CUDA)


def test_a_newer_flash_that_does_not_load_is_told(installed, caplog):
    installed(9, "flash_attn_interface", fails=True)
    assert auto() == "torch" and "libcudart.so.99" in caplog.text
    with pytest.raises(UserError, match=r"'fa3': libcudart\.so\.99"):
        resolve_backend("fa3", CUDA, torch.bfloat16)
    installed(9)
    with pytest.raises(UserError, match="'fa3' needs the package that has the module flash_attn_interface"):
        resolve_backend("fa3", CUDA, torch.bfloat16)


def test_auto_by_type_and_determinism():
    assert auto(torch.float32) == "efficient" and auto(torch.float64) == "grouped"
    torch.use_deterministic_algorithms(True)
    try:
        assert auto(torch.float32) == "grouped"  # efficient has no deterministic backward pass
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("width", "dtype", "said"),
    [
        (
            20,
            torch.bfloat16,
            r"heads are 20 wide \(model.width / model.heads\).*'torch' takes multiples of 8 up to 256",
        ),
        (264, torch.bfloat16, "heads are 264 wide.*up to 256: set model.heads"),
        (10, torch.float32, "heads are 10 wide.*'efficient' takes multiples of 4"),
    ],
)
def test_heads_that_kernels_refuse_are_named_before_the_first_pass(cuda_without_a_driver, width, dtype, said):
    with pytest.raises(UserError, match=said):
        resolve_backend("auto", CUDA, dtype, width)
    assert resolve_backend("auto", "cpu", dtype, width) == "grouped"
    with FakeTensorMode(), CUDA, torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        model = VideoDiT(latent_channels=4, width=2 * width, depth=1, heads=2, text_width=24)
        layout = Packed.of([(1, 2, 2)]).to(CUDA)
        with pytest.raises(UserError, match=said):
            model(torch.randn(4, 16), torch.rand(1), torch.randn(4, 24), layout, layout)
