"""Frozen layers of codes: whole weights but for their rounding, and gradients through them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentvid.models.quantised import (
    BLOCK,
    Coded,
    QuantisedLinear,
    bytes_saved,
    decode,
    encode,
    is_quantised,
    pairs_of_codes,
    quantise,
)

KINDS = ("int8", "nf4")
ERRORS = {"int8": 0.01, "nf4": 0.11}  # of normal weights, over their size, at most


def whole(coded: Coded, inputs: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return decode(coded, pairs_of_codes() if coded.codes.dtype == torch.uint8 else None, inputs, dtype)


def quantised(layer: nn.Linear, kind: str) -> QuantisedLinear:
    return QuantisedLinear(layer, kind, nn.Parameter(pairs_of_codes(), requires_grad=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [2 * BLOCK, 83])
def test_weights_are_off_by_their_codes_rounding_alone(kind, inputs):
    torch.manual_seed(0)
    weight = torch.randn(40, inputs) * torch.logspace(-3, 2, 40)[:, None]  # rows of all sizes
    weight[7] = 0.0
    got = whole(encode(weight, kind), inputs)
    off = (got - weight).norm(dim=1)[weight.any(dim=1)] / weight.norm(dim=1)[weight.any(dim=1)]
    assert got.shape == weight.shape and not got[7].any()
    assert 0 < off.max() < ERRORS[kind]
    again = encode(got, kind)
    torch.testing.assert_close(whole(again, inputs), got, rtol=0.01, atol=0)  # but for the scale, which is rounded up
    # the mean of a row is no smaller or larger for its scale's rounding to bf16
    assert abs((got * weight).sum() / (weight * weight).sum() - 1) < 0.01


def test_int8_is_the_nearest_of_255_codes():
    weight = torch.randn(6, 50)
    codes, scale = encode(weight, "int8")
    assert codes.dtype == torch.int8 and scale.dtype == torch.bfloat16 and scale.shape == (6, 1)
    assert (weight - whole(Coded(codes, scale), 50)).abs().max() <= scale.float().max() / 2 * (1 + 1e-5)
    assert (codes.abs().amax(dim=1) >= 126).all()


def test_nf4_is_bitsandbytes():
    """Of the same scales: its own are fp32."""
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    weight = torch.randn(16, 4 * BLOCK)
    weight[:, ::BLOCK] = 3.5  # the largest of each block, and exact in bf16
    weight.clamp_(-3.5, 3.5)
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    codes, scale = encode(weight, "nf4")
    assert torch.equal(scale.float().flatten(), state.absmax)
    assert torch.equal(codes.flatten(), packed.flatten())
    torch.testing.assert_close(whole(Coded(codes, scale), 4 * BLOCK), functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_with_the_whole_weights_and_keeps_none(kind, bias):
    torch.manual_seed(0)
    layer = nn.Linear(83, 40, bias=bias)
    ours = quantised(layer, kind)
    weight = whole(Coded(ours.weight, ours.scale), 83)
    x, y = (torch.randn(9, 83).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = ours(x)
    assert {t.data_ptr() for t in kept} <= {p.data_ptr() for p in ours.parameters()}
    expected = F.linear(y, weight, layer.bias)
    torch.testing.assert_close(out, expected)
    out.sin().sum().backward()
    expected.sin().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert all(not p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_in_autocasts_type(kind):
    ours, x = quantised(nn.Linear(64, 8), kind), torch.randn(3, 64).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert x.grad.dtype == torch.float32
    assert ours.bfloat16()(x.detach().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_below_modules_are_replaced_and_what_it_saves_is_known(kind):
    block = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.Sequential(nn.Linear(96, 40, bias=False)))
    net = nn.Sequential(block, nn.Linear(40, 40)).requires_grad_(False)
    trained = nn.Linear(5, 5)
    before, saved = size(net), bytes_saved([block, trained], kind)
    assert not is_quantised(net)
    assert quantise([block], kind) == 2
    assert is_quantised(net) and type(net[1]) is nn.Linear
    table = 0 if kind == "int8" else pairs_of_codes().numel() * 4  # that all layers share
    assert before - size(net) == saved - table
    assert net(torch.randn(2, 64)).shape == (2, 40)
    assert quantise([block], kind) == 0


def size(net: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in net.parameters())
