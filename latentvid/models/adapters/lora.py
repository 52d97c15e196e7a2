"""Adapters in a transformer: put there from files, several at once; merged into the weights; written as a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from peft.tuners.loha import LoHaLayer
from peft.tuners.lokr import LoKrLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import UserError
from ...files import check_name, follow_umask, written_whole
from .changes import Change, Hadamard, Kronecker, LayerChange
from .layer import Adapted
from .lora_files import FILE, find_file, read_lora
from .writing import Naming, tensors_of

# --- from files ------------------------------------------------------------------------------------------------------


def load_lora(model: nn.Module, file: str | Path, scale: float = 1.0, name: str | None = None) -> str:
    """Puts a file's adapter, times `scale`, beside what is in the model already. Returns the name it has there.

    model: a `VideoDiT`, a transformer of diffusers, or a backbone over one. file: of any kind that `read_lora` reads.
    What is put in is frozen, in the layers' own types and on their devices. Raises UserError for what `read_lora`
    refuses, and then changes nothing.
    """
    raw = raw_of(model)
    file = find_file(file)
    changes = read_lora(raw, file)
    name = _free_name(name or file.stem, adapters_in(raw))
    places = {key: raw.get_submodule(key) for key in changes}
    for key, change in changes.items():
        if change.magnitude is None:
            continue
        if _is_pefts(places[key]):
            raise UserError(f"{file} is a DoRA, and {key} has adapters of peft beside it: merge or unload these first")
        if not places[key].weight.is_floating_point():
            raise UserError(f"{file} is a DoRA, and {key} is quantised, so that its rows are not known: load it whole")
    for key, change in changes.items():
        if not isinstance(layer := places[key], Adapted):
            layer = Adapted(layer)
            raw.set_submodule(key, layer)
        layer.add(name, change, scale)
    return name


def set_scale(model: nn.Module, name: str, scale: float) -> None:
    """Another scale for an adapter that `load_lora` put in; 0 is without it. Raises UserError for a name it has not."""
    found = [layer for _, layer in adapted_layers(model) if isinstance(layer, Adapted) and name in layer.scales]
    if not found:
        raise UserError(f"the model has no loaded LoRA {name!r}: it has {', '.join(adapters_in(model)) or 'none'}")
    for layer in found:
        layer.scales[name] = scale


def _is_pefts(module: nn.Module) -> bool:
    return isinstance(module.base_layer if isinstance(module, Adapted) else module, BaseTunerLayer)


def _free_name(wanted: str, held: list[str]) -> str:
    """A name that torch takes for a part of a module's, and no other adapter has."""
    base = re.sub(r"\W", "_", wanted) or "lora"
    base = f"lora_{base}" if hasattr(nn.ModuleDict, base) else base  # such as `keys`
    return next(name for name in (base, *(f"{base}_{i}" for i in range(2, len(held) + 3))) if name not in held)


# --- what is in a model ----------------------------------------------------------------------------------------------


def raw_of(model: nn.Module) -> nn.Module:
    """The module that has the layers' names: diffusers' own of a backbone over one."""
    return model.raw if isinstance(getattr(model, "raw", None), nn.Module) else model


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Adapted | BaseTunerLayer]]:
    """The layers that have adapters around them, ours as loaded or peft's, by their names in `raw_of(model)`."""
    inside: tuple[str, ...] = ()
    for name, module in raw_of(model).named_modules():
        if isinstance(module, Adapted | BaseTunerLayer) and not (inside and name.startswith(inside)):
            inside = (*inside, f"{name}.")
            yield name, module


def adapters_in(model: nn.Module) -> list[str]:
    """Names of the adapters that a model has, in the order in which they came."""
    return list(dict.fromkeys(name for _, layer in adapted_layers(model) for name in _names_in(layer)))


def scales_in(model: nn.Module) -> dict[str, float]:
    """Of each adapter that `load_lora` put in."""
    layers = [layer for _, layer in adapted_layers(model) if isinstance(layer, Adapted)]
    return {name: scale for layer in layers for name, scale in layer.scales.items()}


def _names_in(layer: nn.Module) -> list[str]:
    if isinstance(layer, Adapted):
        return [*_names_in(layer.base_layer), *layer.scales]
    return list(layer.r) if isinstance(layer, LoraLayer | LoHaLayer | LoKrLayer) else []


def changes_in(model: nn.Module, adapter: str = "default") -> dict[str, LayerChange]:
    """What an adapter of a model changes, alpha and scale put into its matrices. Raises UserError where there is none
    of that name."""
    found = {name: change for name, layer in adapted_layers(model) if (change := _change(layer, adapter)) is not None}
    if not found:
        raise UserError(f"the model has no LoRA {adapter!r} to save: it has {', '.join(adapters_in(model)) or 'none'}")
    return found


def _change(layer: nn.Module, adapter: str) -> LayerChange | None:
    if isinstance(layer, Adapted):
        if adapter not in layer.scales:
            return _change(layer.base_layer, adapter)
        change, scale = layer.changes()[adapter], layer.scales[adapter]
        if scale != 1 and change.magnitude is not None:
            raise UserError(f"{adapter} has magnitudes and the scale {scale:g}, which no file can say: set it to 1")
        return change.times(scale)
    return _pefts_change(layer, adapter) if isinstance(layer, BaseTunerLayer) and adapter in _names_in(layer) else None


def _pefts_change(layer: BaseTunerLayer, adapter: str) -> LayerChange:
    scale = layer.scaling[adapter]

    def held(name: str) -> Tensor | None:
        of_adapters = getattr(layer, name)
        return of_adapters[adapter].detach().float() if adapter in of_adapters else None

    if isinstance(layer, LoHaLayer):
        return Hadamard(*(held(f"hada_{name}") for name in ("w1_a", "w1_b", "w2_a", "w2_b"))).times(scale)
    if isinstance(layer, LoKrLayer):
        pairs = [[held(f"lokr_{name}{end}") for end in ("", "_a", "_b")] for name in ("w1", "w2")]
        return Kronecker(*(tuple(x for x in pair if x is not None) for pair in pairs)).times(scale)
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter]
    bias, magnitude = (None if b.bias is None else b.bias.detach().float()), None
    if adapter in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[adapter].weight.detach().float().flatten()
    return Change(a.detach().float(), b.weight.detach().float().flatten(1), bias, magnitude).times(scale)


# --- merged, or taken out --------------------------------------------------------------------------------------------


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Adds all adapters, each times its scale, to the weights: the model is a plain one afterwards.

    Computed in fp32, and rounded to the weights' type once. Raises UserError where nan would come of it, or the weights
    are quantised.
    """
    raw = raw_of(model)
    for name, layer in list(adapted_layers(raw)):
        base = _base(layer)
        if not base.weight.is_floating_point():
            raise UserError(f"{name} is quantised: an adapter can be merged into whole weights alone")
        weight, bias = base.weight.float(), None if base.bias is None else base.bias.float()
        total = weight.clone()
        for change, scale in _active(layer):
            total += scale * change.dense(weight)
            if change.bias is not None:
                if bias is None:
                    raise UserError(f"{name} has no bias, which the adapter changes: it cannot be merged")
                bias = bias + scale * change.bias.to(bias.device)
        if not torch.isfinite(total).all() or (bias is not None and not torch.isfinite(bias).all()):
            raise UserError(f"{name} would be nan: this LoRA cannot be merged: give another, or a smaller scale")
        base.weight.copy_(total)
        if bias is not None:
            base.bias.copy_(bias)
    unload(model)


def unload(model: nn.Module) -> None:
    """Takes all adapters out: the model is a plain one afterwards."""
    raw = raw_of(model)
    for name, layer in list(adapted_layers(raw)):
        raw.set_submodule(name, _base(layer))
    if hasattr(raw, "peft_config"):
        del raw.peft_config
    if hasattr(raw, "_hf_peft_config_loaded"):
        raw._hf_peft_config_loaded = False


def _base(layer: Adapted | BaseTunerLayer) -> nn.Module:
    return layer.layer if isinstance(layer, Adapted) else layer.get_base_layer()


def _active(layer: nn.Module) -> list[tuple[LayerChange, float]]:
    """The changes that a layer's output has in it, and their scales."""
    if isinstance(layer, Adapted):
        mine = [(change, scale) for name, change in layer.changes().items() if (scale := layer.scales[name]) != 0]
        return _active(layer.base_layer) + mine
    if not isinstance(layer, BaseTunerLayer) or layer.disable_adapters:
        return []
    names = set(_names_in(layer)) & set(layer.active_adapters)
    return [(_pefts_change(layer, name), 1.0) for name in sorted(names)]


# --- to files --------------------------------------------------------------------------------------------------------


def save_lora(
    model: nn.Module,
    folder: str | Path,
    adapter: str = "default",
    naming: Naming | None = None,
    dtype: torch.dtype = torch.float32,
    name: str = FILE,
    note: Mapping[str, str] | None = None,
) -> Path:
    """Writes an adapter of the model as a file of its own in `folder`, and returns its path.

    naming: `diffusers`, with diffusers' names and metadata, for `load_lora_weights`: LoRA and DoRA, and their default.
    `comfyui`: with the names of ComfyUI, and LyCORIS' tensors of LoHa and LoKr, whose default it is. Alpha is in the
    matrices and equals r. Wan 2.2's two experts have a file each. note: what else the file's header says.
    """
    changes = changes_in(model, adapter)
    if naming is None:
        naming = "diffusers" if all(change.kind in ("lora", "dora") for change in changes.values()) else "comfyui"
    tensors, header = tensors_of(raw_of(model), changes, naming)
    path = Path(folder) / name
    check_name(path, "name", more=40)
    tensors = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
    with written_whole(path) as beside:
        save_file(tensors, beside, metadata={"format": "pt", **header, **(note or {})})
        follow_umask(beside)
    return path
