"""Fused pieces of a block equal their plain formulas, forward and backward, and keep for it no more than they say."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import latentvid.cpu.fused as pieces
from latentvid.cpu import grouped
from latentvid.cpu.fused import gated_linear, gated_residual, modulated_norm, norm_rotary, normed_attention
from latentvid.models.attention_context import make_plans
from latentvid.models.layers import Block, SwiGLU, rotary_table
from latentvid.packing import Packed

T, D, A, K, H = 13, 8, 2, 6, 10
ROW = torch.tensor([0] * 4 + [1] * 2 + [3] * 7)  # row 2 has no tokens, as in a piece of a pack
LENGTHS, WORDS = [4, 6, 3], [2, 5, 1]
POSITIONS = torch.stack([torch.arange(T), torch.arange(T) % 4, torch.arange(T) % 3], dim=1)


def normed_and_turned(x: Tensor, weight: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight
    if cos is None:
        return x
    (a, b), cos, sin = x.chunk(2, dim=-1), cos.chunk(2, dim=-1)[1], sin.chunk(2, dim=-1)[1]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attended(q: Tensor, k: Tensor, v: Tensor, of_q: list[int], of_k: list[int]) -> Tensor:
    parts = zip(q.split(of_q), k.split(of_k), v.split(of_k), strict=True)
    return torch.cat(
        [F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in part)).transpose(0, 1) for part in parts]
    )


def table(dtype: torch.dtype, positions: Tensor = POSITIONS) -> tuple[Tensor, Tensor]:
    cos, sin = rotary_table(positions, K, 100.0)
    return cos.to(dtype), sin.to(dtype)


def fused_attention(q, k, v, weight_q, weight_k, of_k, rotary):
    bounds = tuple(Packed.of_lengths(lengths).cu_seqlens for lengths in (LENGTHS, of_k))
    return normed_attention(q, k, v, (weight_q, weight_k), rotary, bounds, "grouped")


def plain_attention(q, k, v, weight_q, weight_k, of_k, rotary):
    turn = rotary or ()
    return attended(normed_and_turned(q, weight_q, *turn), normed_and_turned(k, weight_k, *turn), v, LENGTHS, of_k)


HEADS, WORDS_HEADS = (T, A, K), (sum(WORDS), A, K)
CASES = {  # shapes of the inputs; the fused piece; its plain formula (dtype: of the table)
    "modulated_norm": (
        [(T, D), (4, D), (4, D)],
        lambda x, shift, scale: modulated_norm(x, shift, scale, ROW),
        lambda x, shift, scale: F.layer_norm(x, (D,), eps=1e-6) * (1 + scale[ROW]) + shift[ROW],
    ),
    "gated_residual": (
        [(T, D), (T, D), (4, D)],
        lambda x, y, gate: gated_residual(x, y, gate, ROW),
        lambda x, y, gate: x + gate[ROW] * y,
    ),
    "gated_linear": (
        [(T, H), (T, H), (D, H), (D,)],
        gated_linear,
        lambda gate, value, weight, bias: F.linear(F.silu(gate) * value, weight, bias),
    ),
    "norm": ([HEADS, (K,)], lambda x, w: norm_rotary(x, w, None), normed_and_turned),
    "norm_rotary": (
        [HEADS, (K,)],
        lambda x, w: norm_rotary(x, w, table(torch.float64)),
        lambda x, w: normed_and_turned(x, w, *table(x.dtype)),
    ),
    "self-attention": (
        [HEADS, HEADS, HEADS, (K,), (K,)],
        lambda *x: fused_attention(*x, LENGTHS, table(torch.float64)),
        lambda *x: plain_attention(*x, LENGTHS, table(x[0].dtype)),
    ),
    "cross-attention": (
        [HEADS, WORDS_HEADS, WORDS_HEADS, (K,), (K,)],
        lambda *x: fused_attention(*x, WORDS, None),
        lambda *x: plain_attention(*x, WORDS, None),
    ),
}


def inputs(shapes, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def run(piece, tensors: list[Tensor]) -> list[Tensor]:
    """The output, and gradients under a loss that weighs every element differently."""
    out = piece(*tensors)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [out, *torch.autograd.grad(out, tensors, weight)]


@pytest.mark.parametrize("tokens", [1, 32])  # tokens of a segment from which attention is a kernel of its own
@pytest.mark.parametrize("name", CASES)
def test_a_piece_is_its_formula(name, tokens, monkeypatch):
    monkeypatch.setattr(grouped, "FUSED_TOKENS", tokens)
    shapes, fused, plain = CASES[name]
    tensors = inputs(shapes, torch.float64)
    for got, want in zip(run(fused, tensors), run(plain, tensors), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(fused, tensors, fast_mode=True)
    tensors = inputs(shapes, torch.float32)
    for got, want in zip(run(fused, tensors), run(plain, tensors), strict=True):
        assert got.dtype == torch.float32 and (got - want).abs().max() <= 1e-6 * max(1, want.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_a_piece_in_bf16_is_its_formula_within_rounding(name):
    shapes, fused, plain = CASES[name]
    tensors = inputs(shapes, torch.bfloat16)
    exact = run(plain, [x.detach().double().requires_grad_() for x in tensors])
    rounded = run(plain, tensors)
    for got, want, other in zip(run(fused, tensors), exact, rounded, strict=True):
        assert got.dtype == torch.bfloat16
        error, usual = ((x - want).norm() / want.norm() for x in (got, other))
        assert error < max(0.01, 1.5 * usual)


def test_sums_over_many_tokens_in_bf16_are_of_fp32():
    """Sums kept in bf16 stop growing at a few hundred tokens."""
    x, row = torch.ones(5000, D, dtype=torch.bfloat16), torch.zeros(5000, dtype=torch.int64)
    gate, scale, shift = (torch.zeros(1, D, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    gated_residual(x, x, gate, row).sum().backward()
    modulated_norm(torch.randn_like(x), shift, scale, row).sum().backward()
    assert torch.equal(gate.grad, torch.full_like(gate, 5000)) and torch.equal(shift.grad, gate.grad)
    weight = torch.ones(K, requires_grad=True)
    norm_rotary(torch.ones(5000, A, K, dtype=torch.bfloat16), weight, None).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 5000.0 * A), rtol=0.005, atol=0)


def kept_by(call, module: nn.Module) -> dict[int, torch.UntypedStorage]:
    """The storages that a forward pass keeps, those of parameters and of its output left out."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    held = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            held[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        out = call()
    held.pop(out.untyped_storage().data_ptr(), None)
    return held


def kept_by_a_block(block: Block, frames: int, width: int, dtype: torch.dtype) -> int:
    """Bytes, without the table of positions, which serves all blocks."""
    layout, text_layout = Packed.of([(frames, 4, 4)]), Packed.of_lengths([3])
    plan = make_plans("full", layout, rotary_table(layout.position, width // 2, 100.0))[0]
    x, condition, text = (torch.randn(n, width, dtype=dtype) for n in (layout.tokens, layout.frames, 3))
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        held = kept_by(lambda: block(x, condition, text, plan, layout, text_layout, "grouped"), block)
    shared = {t.untyped_storage().data_ptr() for t in (*plan.rotary, layout.frame)}
    return sum(storage.nbytes() for pointer, storage in held.items() if pointer not in shared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_keeps_twenty_widths_a_token(dtype):
    width = 96
    block = Block(width, 2, 8 / 3, width)
    more = kept_by_a_block(block, 8, width, dtype) - kept_by_a_block(block, 4, width, dtype)
    rows = 7 * 4 * width  # of 4 latent frames more: their modulation, and what makes it
    assert 18 < (more / dtype.itemsize - rows) / (64 * width) <= 20


def test_swiglu_is_countable_and_keeps_no_product():
    net, x = SwiGLU(D, H), torch.randn(T, D)
    with FlopCounterMode(display=False) as counter:
        held = kept_by(lambda: net(x), net)
    assert counter.get_total_flops() == 3 * 2 * T * D * H
    assert sum(s.nbytes() for s in held.values()) == 4 * (T * D + 2 * T * H)


@pytest.fixture
def cuda_autocast():
    """What torch.autocast("cuda", torch.bfloat16) sets, also where no GPU is."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


@pytest.mark.parametrize("name", ["modulated_norm", "gated_residual", "gated_linear", "norm"])
def test_a_piece_under_cudas_autocast_keeps_its_dtype(name, cuda_autocast):
    """It would run norms in fp32, and promote what they meet; shapes and dtypes alone are computed here."""
    shapes, fused, _ = CASES[name]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        tensors = [torch.empty(shape, dtype=torch.bfloat16, device="cuda") for shape in shapes]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules[__name__], "ROW", mode.from_tensor(ROW).to("cuda"))
            out = fused(*tensors)
    assert out.dtype == torch.bfloat16 and out.device.type == "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_rows_are_wide_inside(dtype):
    """By addition on CPUs, by a matrix product where additions are atomic, as one operator in compiled blocks."""
    x = torch.cat([torch.full((300, D), 1.0), torch.randn(T, D)]).to(dtype)  # one by one, bf16 counts to 256 only
    row = torch.cat([torch.full((300,), 2), ROW])
    want = torch.stack([x[row == r].double().sum(0) for r in range(4)])
    for sums in (pieces._row_sums, pieces._row_product, pieces._row_sums_op):
        torch.testing.assert_close(sums(x, row, 4).double(), want, **TOLERANCE[dtype])
    torch.library.opcheck(pieces._row_sums_op, (x, row, 4))


TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-4}, torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2}}
