"""An adapter's matrices beside the layers of a frozen model, by peft: new ones, or those of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners import loha, lokr
from torch import Tensor, nn

from ....config.schema import DitConfig
from ....config.sections import Adapter
from ....errors import UserError
from ....models.adapters.changes import Change, LayerChange
from ....models.adapters.lora import raw_of
from ....models.adapters.lora_files import read_lora
from ....models.open import OpenBackbone
from ....models.quantised import quantise
from ....models.transformer import VideoDiT

LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)  # that peft puts matrices beside
ADAPTER = "default"  # its name in the model


def add_adapter(model: VideoDiT | OpenBackbone, config: DitConfig, usual: Sequence[str]) -> None:
    """All else is frozen, and its linear layers are quantised where that is asked for; the matrices are fp32. Raises
    UserError for a name that nothing has, and for layers that the kind cannot change."""
    settings, raw = config.adapter, raw_of(model)
    raw.requires_grad_(False)
    begun = {} if settings.init is None else _begun(model, settings)
    chosen = sorted(begun or _chosen(model, settings, usual))
    _check_layers(raw, settings.kind, chosen)
    if settings.base != "whole":
        quantise(_blocks_of(model), settings.base)
    torch.manual_seed(config.run.seed)
    inject_adapter_in_model(of_peft(settings, chosen, {name: change.rank for name, change in begun.items()}), raw)
    raw._hf_peft_config_loaded = True  # as `add_adapter` of diffusers does
    for module in raw.modules():
        module.__class__ = {loha.Linear: _LoHa, lokr.Linear: _LoKr}.get(type(module), type(module))
    for parameter in raw.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for name, change in begun.items():
        _take(raw.get_submodule(name), change)


def _chosen(model: VideoDiT | OpenBackbone, settings: Adapter, usual: Sequence[str]) -> set[str]:
    """The layers whose names end as asked, or as is usual in the blocks."""
    raw, chosen = raw_of(model), set()
    layers = [name for name, m in raw.named_modules() if isinstance(m, LAYERS) and not is_idle(model, name)]
    if settings.targets:
        wanted, among = settings.targets, layers
    else:
        inside = {id(m) for block in _blocks_of(model) for m in block.modules()}
        apart = getattr(model, "apart_from_lora", None)
        wanted, among = usual, [name for name in layers if id(raw.get_submodule(name)) in inside]
        among = among if apart is None else [name for name in among if apart not in name]
    for ending in wanted:
        found = [name for name in among if f".{name}".endswith(f".{ending}")]
        if not found:
            key = "adapter.targets" if settings.targets else "adapter"
            raise UserError(f"{key}: no layer's name ends in {ending!r}: there are {few(among)}")
        chosen.update(found)
    return chosen


def _blocks_of(model: VideoDiT | OpenBackbone) -> Sequence[nn.Module]:
    """Of a network without blocks all of it."""
    return (*model.blocks, *getattr(model, "temporal", ())) or (raw_of(model),)


def of_peft(settings: Adapter, layers: Sequence[str], ranks: Mapping[str, int | None] | None = None) -> PeftConfig:
    """Whatever the kind: the matrices' product is times alpha / rank, and 0 at first.

    ranks: of layers whose matrices come from a file, with alpha in them; None of a layer whose matrices are whole.
    """
    rank, alpha = settings.rank, settings.rank if settings.alpha is None else settings.alpha
    each = {f"^{name}": r for name, r in (ranks or {}).items() if r is not None}
    dora, patterns = settings.kind == "dora", {"rank_pattern": each, "alpha_pattern": dict(each)}
    common = {"r": rank, "target_modules": list(layers), **patterns}
    if settings.kind in ("lora", "dora"):
        return LoraConfig(lora_alpha=alpha, lora_dropout=settings.dropout, use_dora=dora, **common)
    if settings.kind == "loha":
        return LoHaConfig(alpha=alpha, rank_dropout=settings.dropout, **common)
    # what is not left out is larger, as LoHa has it always
    return LoKrConfig(alpha=alpha, rank_dropout=settings.dropout, rank_dropout_scale=True, **common)


def _check_layers(raw: nn.Module, kind: str, chosen: Sequence[str]) -> None:
    """Raises UserError for layers that the kind cannot change."""
    for name in chosen:
        layer = raw.get_submodule(name)
        if kind in ("loha", "lokr") and not isinstance(layer, nn.Linear):
            raise UserError(
                f"adapter.kind={kind} changes linear maps alone, and {name} is a convolution: name others in "
                "adapter.targets, or set adapter.kind=lora"
            )
        if kind == "dora" and not layer.weight.is_meta and not layer.weight.flatten(1).any(dim=1).all():
            raise UserError(
                f"adapter.kind=dora learns the size of each row of a weight, and {name} has rows of zeros: name others "
                "in adapter.targets, or set adapter.kind=lora"
            )


class _Always:
    """peft's layers of LoHa and LoKr, none of which a pass leaves out. peft draws a number for that in each pass, which
    one without storage (`--dry-run`) and a compiled block cannot look at."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        if not self.disable_adapters:
            for name in self.active_adapters:
                result = result + self._get_delta_activations(name, x)
        return result.to(x.dtype)


class _LoHa(_Always, loha.Linear):
    pass


class _LoKr(_Always, lokr.Linear):
    pass


def _begun(model: VideoDiT | OpenBackbone, settings: Adapter) -> dict[str, LayerChange]:
    """What `adapter.init` changes. Raises UserError where it is of another kind, or changes what is not trained."""
    file = settings.init
    changes = read_lora(raw_of(model), file)
    for name, change in changes.items():
        if change.kind != settings.kind:
            raise UserError(
                f"adapter.init: {file} changes {name} by {change.kind}, and adapter.kind is {settings.kind}: set "
                f"adapter.kind={change.kind}, or give another file"
            )
        if change.bias is not None or (change.magnitude is not None and not isinstance(change, Change)):
            what = "a bias" if change.bias is not None else "magnitudes"
            raise UserError(f"adapter.init: {file} changes {what} of {name}, which is not trained beside matrices here")
        if is_idle(model, name):
            raise UserError(f"adapter.init: {file} changes {name}, which takes no part in this model's pass")
    return changes


def _take(layer: nn.Module, change: LayerChange) -> None:
    """Puts a file's matrices instead of peft's new ones."""
    device = layer.get_base_layer().weight.device
    tensors = {name: tensor.to(device).contiguous() for name, tensor in change.tensors().items()}
    if isinstance(change, Change):
        wide = [1] * (layer.get_base_layer().weight.ndim - 2)
        layer.lora_A[ADAPTER].weight.data = tensors["a"]
        layer.lora_B[ADAPTER].weight.data = tensors["b"].reshape(*tensors["b"].shape, *wide)
        if change.magnitude is not None:
            held = layer.lora_magnitude_vector[ADAPTER].weight
            held.data = tensors["magnitude"].reshape(held.shape)
        return
    stem = "hada" if change.kind == "loha" else "lokr"
    for attribute in layer.adapter_layer_names:  # LoKr's matrices are whole or products as the file has them
        held, name = getattr(layer, attribute), attribute.removeprefix(f"{stem}_")
        if ADAPTER in held:
            del held[ADAPTER]
        if name in tensors:
            held[ADAPTER] = nn.Parameter(tensors[name])


def is_idle(model: nn.Module, name: str) -> bool:
    """Whether what has that name takes no part in the pass, such as the sound of LTX-2: nothing there is trained."""
    return isinstance(model, OpenBackbone) and model.idle(name)


def few(names: Sequence[str]) -> str:
    """Distinct names without the blocks' numbers."""
    distinct = list(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in names))
    return ", ".join(distinct[:12]) + (", ..." if len(distinct) > 12 else "")
