"""What runs on CPUs equals the formulas of the model, forward and backward, and keeps no more than it says."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import latentvid.cpu.fused as fused
from latentvid import kernels
from latentvid.attention import packed_attention
from latentvid.cpu import grouped
from latentvid.models import layers
from latentvid.models.attention_context import make_contexts
from latentvid.models.layers import Block, SwiGLU, rotary_table
from latentvid.models.open.backbone import norm_modulated
from latentvid.packing import Packed

T, D, A, K, H = 13, 8, 2, 6, 10
FRAME = torch.tensor([0] * 4 + [1] * 2 + [3] * 7)  # frame 2 has no tokens, as in a piece of a pack
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


def table(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos, sin = rotary_table(POSITIONS, K, 100.0)
    return cos.to(dtype), sin.to(dtype)


def our_attention(q, k, v, weight_q, weight_k, of_k, rotary):
    q, k = layers.norm_rotary(q, weight_q, rotary), layers.norm_rotary(k, weight_k, rotary)
    return packed_attention(q, k, v, Packed.of_lengths(LENGTHS), Packed.of_lengths(of_k), "grouped")


def plain_attention(q, k, v, weight_q, weight_k, of_k, rotary):
    turn = rotary or ()
    return attended(normed_and_turned(q, weight_q, *turn), normed_and_turned(k, weight_k, *turn), v, LENGTHS, of_k)


def norm_of(weight: Tensor, bias: Tensor) -> SimpleNamespace:
    return SimpleNamespace(weight=weight, bias=bias, eps=1e-3)


def pair_table(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle = torch.linspace(-7, 7, T * K // 2, dtype=torch.float64).reshape(T, 1, K // 2).repeat_interleave(2, dim=-1)
    wide = torch.promote_types(dtype, torch.float32)
    return angle.cos().to(wide), angle.sin().to(wide)


def pairs_turned(x: Tensor) -> Tensor:
    cos, sin = (t[..., ::2] for t in pair_table(x.dtype))
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


HEADS, WORDS_HEADS = (T, A, K), (sum(WORDS), A, K)
CASES = {  # shapes of the inputs; ours; the formula by hand (dtype: of the table)
    "layer_norm": (
        [(T, D), (D,), (D,)],
        lambda x, weight, bias: layers.layer_norm(x, weight, bias),
        lambda x, weight, bias: F.layer_norm(x, (D,), eps=1e-6) * weight + bias,
    ),
    "modulated_norm": (
        [(T, D), (4, D), (4, D)],
        lambda x, shift, scale: layers.modulated_norm(x, shift, scale, FRAME),
        lambda x, shift, scale: F.layer_norm(x, (D,), eps=1e-6) * (1 + scale[FRAME]) + shift[FRAME],
    ),
    "modulated_norm, with weights": (
        [(T, D), (4, D), (4, D), (D,), (D,)],
        lambda x, shift, scale, weight, bias: norm_modulated(norm_of(weight, bias), x, shift, scale, FRAME),
        lambda x, shift, scale, weight, bias: (
            F.layer_norm(x, (D,), weight, bias, 1e-3) * (1 + scale[FRAME]) + shift[FRAME]
        ),
    ),
    "turn_pairs": ([HEADS], lambda x: layers.turn_pairs(x, *pair_table(x.dtype)), pairs_turned),
    "gated_residual": (
        [(T, D), (T, D), (4, D)],
        lambda x, y, gate: layers.gated_residual(x, y, gate, FRAME),
        lambda x, y, gate: x + gate[FRAME] * y,
    ),
    "gated": (
        [(T, H), (T, H), (D, H), (D,)],
        lambda gate, value, weight, bias: layers.gated(gate, value, lambda x: F.linear(x, weight, bias)),
        lambda gate, value, weight, bias: F.linear(F.silu(gate) * value, weight, bias),
    ),
    "norm": ([HEADS, (K,)], lambda x, w: layers.norm_rotary(x, w, None), normed_and_turned),
    "norm_rotary": (
        [HEADS, (K,)],
        lambda x, w: layers.norm_rotary(x, w, table(torch.float64)),
        lambda x, w: normed_and_turned(x, w, *table(x.dtype)),
    ),
    "self-attention": (
        [HEADS, HEADS, HEADS, (K,), (K,)],
        lambda *x: our_attention(*x, LENGTHS, table(torch.float64)),
        lambda *x: plain_attention(*x, LENGTHS, table(x[0].dtype)),
    ),
    "cross-attention": (
        [HEADS, WORDS_HEADS, WORDS_HEADS, (K,), (K,)],
        lambda *x: our_attention(*x, WORDS, None),
        lambda *x: plain_attention(*x, WORDS, None),
    ),
}
either = pytest.mark.parametrize("plain", [False, True], ids=["kernel", "formula"])


def inputs(shapes, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def run(piece, tensors: list[Tensor]) -> list[Tensor]:
    """The output, and gradients under a loss that weighs every element differently."""
    out = piece(*tensors)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [out, *torch.autograd.grad(out, tensors, weight)]


@either
@pytest.mark.parametrize("tokens", [1, 32])  # tokens of a segment from which attention is a kernel of its own
@pytest.mark.parametrize("name", CASES)
def test_a_piece_is_its_formula(name, tokens, plain, monkeypatch):
    monkeypatch.setattr(grouped, "FUSED_TOKENS", tokens)
    monkeypatch.setattr(kernels, "plain", plain)
    shapes, ours, by_hand = CASES[name]
    tensors = inputs(shapes, torch.float64)
    for got, want in zip(run(ours, tensors), run(by_hand, tensors), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(ours, tensors, fast_mode=True)
    tensors = inputs(shapes, torch.float32)
    for got, want in zip(run(ours, tensors), run(by_hand, tensors), strict=True):
        assert got.dtype == torch.float32 and (got - want).abs().max() <= 1e-6 * max(1, want.abs().max())


@either
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"layer_norm"}))  # which is torch's own
def test_a_piece_in_bf16_is_its_formula_within_rounding(name, plain, monkeypatch):
    monkeypatch.setattr(kernels, "plain", plain)
    shapes, ours, by_hand = CASES[name]
    tensors = inputs(shapes, torch.bfloat16)
    exact = run(by_hand, [x.detach().double().requires_grad_() for x in tensors])
    rounded = run(by_hand, tensors)
    for got, want, other in zip(run(ours, tensors), exact, rounded, strict=True):
        assert got.dtype == torch.bfloat16
        error, usual = ((x - want).norm() / want.norm() for x in (got, other))
        assert error < max(0.01, 1.5 * usual)


@either
def test_sums_over_many_tokens_in_bf16_are_of_fp32(plain, monkeypatch):
    """Sums kept in bf16 stop growing at a few hundred tokens."""
    monkeypatch.setattr(kernels, "plain", plain)
    x, frame = torch.ones(5000, D, dtype=torch.bfloat16), torch.zeros(5000, dtype=torch.int64)
    gate, scale, shift = (torch.zeros(1, D, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    layers.gated_residual(x, x, gate, frame).sum().backward()
    layers.modulated_norm(torch.randn_like(x), shift, scale, frame).sum().backward()
    assert torch.equal(gate.grad, torch.full_like(gate, 5000)) and torch.equal(shift.grad, gate.grad)
    weight = torch.ones(K, requires_grad=True)
    layers.norm_rotary(torch.ones(5000, A, K, dtype=torch.bfloat16), weight, None).sum().backward()
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
    (context,) = make_contexts("full", layout, text_layout, rotary_table(layout.position, width // 2, 100.0), "grouped")
    x, condition, text = (torch.randn(n, width, dtype=dtype) for n in (layout.tokens, layout.frames, 3))
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        held = kept_by(lambda: block(x, condition, text, context), block)
    shared = {t.untyped_storage().data_ptr() for t in (*context.rotary, layout.frame)}
    return sum(storage.nbytes() for pointer, storage in held.items() if pointer not in shared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_keeps_twenty_widths_a_token(dtype):
    width = 96
    block = Block(width, 2, 8 / 3)
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


@pytest.mark.parametrize("name", ["layer_norm", "modulated_norm", "gated_residual", "gated", "norm", "norm_rotary"])
def test_a_formula_under_cudas_autocast_keeps_its_dtype(name, cuda_autocast, monkeypatch):
    """It would run norms in fp32, and promote what they meet; shapes and dtypes alone are computed here."""
    shapes, ours, _ = CASES[name]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        tensors = [torch.empty(shape, dtype=torch.bfloat16, device="cuda") for shape in shapes]
        monkeypatch.setitem(globals(), "FRAME", mode.from_tensor(FRAME).to("cuda"))
        monkeypatch.setitem(globals(), "POSITIONS", mode.from_tensor(POSITIONS).to("cuda"))
        out = ours(*tensors)
    assert out.dtype == torch.bfloat16 and out.device.type == "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_frames_are_wide_inside(dtype):
    """By addition on CPUs, by a matrix product where additions are atomic."""
    x = torch.cat([torch.full((300, D), 1.0), torch.randn(T, D)]).to(dtype)  # one by one, bf16 counts to 256 only
    frame = torch.cat([torch.full((300,), 2), FRAME])
    want = torch.stack([x[frame == r].double().sum(0) for r in range(4)])
    values = torch.zeros(4, D, dtype=dtype, requires_grad=True)
    (product,) = torch.autograd.grad(layers.per_token(values, frame), values, x)
    for sums in (fused._frame_sums(x, frame, 4), product):
        torch.testing.assert_close(sums.double(), want, **TOLERANCE[dtype])


TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-4}, torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2}}


def test_what_is_frozen_gets_no_sums(monkeypatch):
    """Where adapters alone train, modulations need no gradient: no sums over the tokens of frames."""
    monkeypatch.setattr(fused, "_frame_sums", lambda *_: pytest.fail("summed"))
    x, y = torch.randn(T, D, requires_grad=True), torch.randn(T, D, requires_grad=True)
    shift, scale, gate = torch.randn(3, 4, D).unbind()
    layers.gated_residual(layers.modulated_norm(x, shift, scale, FRAME), y, gate, FRAME).sum().backward()
    assert x.grad is not None and y.grad is not None


def swiglu_gradients(net: nn.Module, x: Tensor, call=None) -> list[Tensor]:
    out = (call or net)(x)
    return torch.autograd.grad(out.square().sum(), [x, *net.parameters()])


def test_what_is_made_again_is_seen_by_hooks_around_it():
    """Activation checkpointing around a kernel keeps its inputs alone."""
    torch.manual_seed(0)
    net, x = SwiGLU(D, H), torch.randn(T, D, requires_grad=True)
    want = swiglu_gradients(net, x)
    got = swiglu_gradients(net, x, lambda x: checkpoint(net, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    held = kept_by(lambda: checkpoint(net, x, use_reentrant=False), net)
    assert sum(s.nbytes() for s in held.values()) <= 4 * T * D + 64


def test_a_wrapped_layer_gets_what_its_own_gradient_needs():
    """Around the last linear layer of SwiGLU, which keeps no product: noise of its own, and hooks."""
    torch.manual_seed(0)
    net, x = SwiGLU(D, H).double(), torch.randn(T, D, dtype=torch.float64, requires_grad=True)
    linear, more = net.fc2, nn.Linear(H, D).double()
    net.fc2, seen = nn.Module(), []
    net.fc2.linear, net.fc2.more = linear, more
    net.fc2.forward = lambda y: linear(y) + more(y.square())
    linear.register_forward_hook(lambda *_: seen.append(1))
    got = swiglu_gradients(net, x)
    assert len(seen) == 1
    plain = swiglu_gradients(net, x, lambda x: net.fc2(F.silu(net.fc1_g(x)) * net.fc1_x(x)))
    for a, b in zip(got, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
