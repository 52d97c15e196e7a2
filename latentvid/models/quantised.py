"""Frozen linear layers whose weights take a byte, or half of one, each.

Axes: o outputs of a layer, i its inputs, b blocks of a row, T tokens.

- int8: a weight is a code of -127 to 127 times the scale of its row; 1 + 2/i bytes. Source: absmax quantisation of
  Dettmers et al. 2022 (LLM.int8()), section 2.1.
- nf4: one of 16 quantiles of the normal distribution times the scale of its 64 weights; 0.5 + 2/64 bytes. Source:
  Dettmers et al. 2023 (QLoRA), section 3.

Scales are bf16, and codes are of the rounded scales, so that whole weights are off by the codes' rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Format = Literal["int8", "nf4"]
BLOCK = 64  # weights of a row that share a scale, of nf4
LARGEST = 127  # code, of int8
# Dettmers et al. 2023, appendix E
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class Coded(NamedTuple):
    """codes: int8 [o,i], of nf4 uint8 [o, 32 b] of two weights each, the first in the high bits. scale: bf16 [o,1], of
    nf4 [o,b]."""

    codes: Tensor
    scale: Tensor


class QuantisedLinear(nn.Linear):
    """x [T,i] -> [T,o], computed in the type of x (autocast's where it is on) with whole weights, which are made for
    each pass and not kept for the backward pass. Neither weights nor bias are trained."""

    def __init__(self, layer: nn.Linear, kind: Format, pairs: nn.Parameter) -> None:
        """pairs: of `pairs_of_codes`, which layers share; not used by int8."""
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = layer.in_features, layer.out_features, kind
        coded = encode(layer.weight.detach(), kind)
        self.weight = nn.Parameter(coded.codes, requires_grad=False)
        self.scale = nn.Parameter(coded.scale, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        self.pairs = pairs if kind == "nf4" else None
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return _Product.apply(x.to(dtype), self.weight, self.scale, self.bias, self.pairs, self.in_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.kind}"


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, pairs: Tensor | None, inputs: int
    ) -> Tensor:
        ctx.save_for_backward(codes, scale, pairs)
        ctx.inputs = inputs
        return F.linear(x, decode(Coded(codes, scale), pairs, inputs, x.dtype), None if bias is None else bias.to(x))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale, pairs = ctx.saved_tensors
        return gradient @ decode(Coded(codes, scale), pairs, ctx.inputs, gradient.dtype), None, None, None, None, None


def quantise(modules: Iterable[nn.Module], kind: Format) -> int:
    """Puts quantised layers, frozen, instead of all linear ones below these modules. Returns how many."""
    pairs, count = nn.Parameter(pairs_of_codes(), requires_grad=False), 0
    for module in modules:
        for name, layer in list(module.named_modules()):
            if type(layer).forward is nn.Linear.forward and name:
                module.set_submodule(name, QuantisedLinear(layer, kind, pairs))
                count += 1
    return count


def is_quantised(model: nn.Module) -> bool:
    return any(isinstance(module, QuantisedLinear) for module in model.modules())


def bytes_saved(modules: Iterable[nn.Module], kind: Format) -> int:
    """That `quantise` would make the frozen linear layers below these modules smaller by."""
    layers = {
        id(layer): layer
        for module in modules
        for layer in module.modules()
        if type(layer).forward is nn.Linear.forward and not layer.weight.requires_grad
    }
    return sum(layer.weight.numel() * layer.weight.element_size() - _size(layer, kind) for layer in layers.values())


def _size(layer: nn.Linear, kind: Format) -> int:
    blocks = -(-layer.in_features // BLOCK)
    return layer.out_features * (layer.in_features + 2 if kind == "int8" else (BLOCK // 2 + 2) * blocks)


def encode(weight: Tensor, kind: Format) -> Coded:
    """weight [o,i] of any floating type."""
    weight = weight.float()
    if kind == "int8":
        scale = _bf16_at_least(weight.abs().amax(dim=1, keepdim=True) / LARGEST)
        return Coded((weight / scale.float()).round().to(torch.int8), scale)
    weight = F.pad(weight, (0, -weight.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))  # [o,b,64]
    scale = _bf16_at_least(weight.abs().amax(dim=2))
    table = torch.tensor(NF4, device=weight.device)
    between = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(weight / scale.float()[..., None], between).to(torch.uint8).flatten(1)  # [o, 64 b]
    return Coded(codes[:, ::2] << 4 | codes[:, 1::2], scale)


def decode(coded: Coded, pairs: Tensor | None, inputs: int, dtype: torch.dtype) -> Tensor:
    """The weights [o,i]. pairs: of nf4; None: int8."""
    codes, scale = coded
    if pairs is None:
        return codes.to(dtype) * scale.to(dtype)
    both = F.embedding(codes.int(), pairs.to(dtype))  # [o, 32 b, 2]
    whole = both.reshape(*scale.shape, BLOCK) * scale.to(dtype)[..., None]
    return whole.flatten(1)[:, :inputs]


def pairs_of_codes() -> Tensor:
    """[256,2] what the two weights of a byte of nf4 are, over their scale."""
    table = torch.tensor(NF4)
    return torch.cartesian_prod(table, table)


def _bf16_at_least(scale: Tensor) -> Tensor:
    """Rounded up, so that no code is beyond its largest; 1 where all is zero."""
    scale = torch.where(scale > 0, scale, 1.0)
    rounded = scale.bfloat16()
    return torch.where(rounded.float() < scale, torch.nextafter(rounded, torch.full_like(rounded, torch.inf)), rounded)
