"""A layer of a network with adapters beside it, as inference loads them: frozen, of any kinds, each with its scale.

Training has peft's layers. Here each change is added to what the layer alone makes, so that several adapters come to
the same in any order, merged or not: peft multiplies by the magnitudes of a DoRA what adapters before it added too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .changes import Change, Hadamard, Kronecker, LayerChange, whole


class Adapted(nn.Module):
    """What `base_layer` makes of x [...,i] (a convolution's [B,i,t,h,w]), and s times what each adapter makes of it.

    scales: of each adapter; with 0 nothing of it is computed, and the output is the layer's own to the last bit.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapters = nn.ModuleDict()
        self.scales: dict[str, float] = {}
        self.train(base_layer.training)

    @property
    def layer(self) -> nn.Module:
        """The network's own layer, also where peft's adapters are around it."""
        return self.base_layer.get_base_layer() if isinstance(self.base_layer, BaseTunerLayer) else self.base_layer

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def add(self, name: str, change: LayerChange, scale: float) -> None:
        self.adapters[name] = _Beside(change, self.layer)
        self.scales[name] = scale

    def changes(self) -> dict[str, LayerChange]:
        return {name: beside.change() for name, beside in self.adapters.items()}

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        plain = self.base_layer(x, *args, **kwargs)
        out = plain
        for name, beside in self.adapters.items():
            if (scale := self.scales[name]) != 0:
                made = beside(x, plain, self.layer).to(out.dtype)
                out = out + (made if scale == 1 else scale * made)
        return out


class _Beside(nn.Module):
    """One adapter's tensors, in the layer's type and on its device; magnitudes as m / |W + P| - 1 too."""

    def __init__(self, change: LayerChange, layer: nn.Module) -> None:
        super().__init__()
        weight = layer.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.float32  # a quantised one has none
        self._fields = tuple(change.tensors())
        for name, tensor in change.tensors().items():
            self._hold(name, tensor.to(weight.device, torch.float32 if name == "magnitude" else dtype))
        self._hold("excess", None if change.magnitude is None else change.excess(weight).to(weight.device, dtype))
        self._make = {Change: _lora, Hadamard: _loha, Kronecker: _lokr}[type(change)]
        self._type = type(change)

    def _hold(self, name: str, tensor: Tensor | None) -> None:
        self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))

    def change(self) -> LayerChange:
        found = {name: getattr(self, name).detach().float() for name in self._fields}
        if self._type is Kronecker:
            for name in ("w1", "w2"):
                found[name] = tuple(found.pop(key) for key in (name, f"{name}_a", f"{name}_b") if key in found)
        return self._type(**found)

    def forward(self, x: Tensor, plain: Tensor, layer: nn.Module) -> Tensor:
        """D x and the bias's change; plain: W x and the layer's bias."""
        first = getattr(self, self._fields[0])
        made = self._make(self, x.to(first.dtype), layer)
        if self.excess is not None:  # D x = P x + (m / |W + P| - 1) (W x + P x)
            alone = plain if layer.bias is None else plain - _channels(layer.bias, plain, layer)
            made = made + _channels(self.excess, plain, layer) * (alone + made)
        bias = getattr(self, "bias", None)
        return made if bias is None else made + _channels(bias, made, layer)


def _lora(held: _Beside, x: Tensor, layer: nn.Module) -> Tensor:
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        convolve = F.conv2d if isinstance(layer, nn.Conv2d) else F.conv3d
        h = convolve(x, held.a, None, layer.stride, layer.padding, layer.dilation, layer.groups)  # [B,r,...]
        return F.linear(h.movedim(1, -1), held.b).movedim(-1, 1)
    return F.linear(F.linear(x, held.a), held.b)


def _loha(held: _Beside, x: Tensor, layer: nn.Module) -> Tensor:
    return F.linear(x, (held.w1_a @ held.w1_b) * (held.w2_a @ held.w2_b))


def _lokr(held: _Beside, x: Tensor, layer: nn.Module) -> Tensor:
    """kron(C, D) x = C X D^T, rows of X [b,i/b] and of the result [a,o/a] one after another."""
    names = held._fields
    c, d = (whole(tuple(getattr(held, key) for key in names if key.startswith(name))) for name in ("w1", "w2"))
    h = F.linear(x.unflatten(-1, (c.shape[1], d.shape[1])), d)  # [...,b,o/a]
    return (c @ h).flatten(-2)


def _channels(values: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
    """[o] for the channels of x, which of a convolution's are the second axis."""
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        return values.reshape(-1, *[1] * (x.ndim - 2))
    return values
