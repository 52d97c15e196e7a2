"""LoRA in a transformer: put there from files, several at once; merged into the weights; written as a file."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import UserError
from ...files import check_name, follow_umask, written_whole
from .layer_names import foreign_places, layers_of
from .lora_files import FILE, Change, find_file, read_lora

Naming = Literal["diffusers", "comfyui"]


# --- from files ------------------------------------------------------------------------------------------------------


def load_lora(model: nn.Module, file: str | Path, scale: float = 1.0, name: str | None = None) -> str:
    """Puts a file's LoRA, times `scale`, beside what is active in the model already. Returns the name it has there.

    model: a `VideoDiT`, a transformer of diffusers, or a backbone over one. What is put in is frozen, in the layers'
    own types and on their devices. Raises UserError for what `read_lora` refuses, and then changes nothing.
    """
    raw = raw_of(model)
    file = find_file(file)
    changes = read_lora(raw, file)
    held = adapters_in(raw)
    name = _free_name(name or file.stem, held)
    before = {p: p.requires_grad for p in raw.parameters()}
    state = _beside(_state(raw, changes), raw)
    with warnings.catch_warnings():  # of several adapters, and of endings of names that fit others too: both are meant
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config_of(changes), raw, name, low_cpu_mem_usage=True, state_dict=state)
    result = set_peft_model_state_dict(raw, state, name, low_cpu_mem_usage=True)
    if result.unexpected_keys:
        raise RuntimeError(f"peft has no place for {result.unexpected_keys[0]}")
    if hasattr(raw, "_hf_peft_config_loaded"):
        raw._hf_peft_config_loaded = True  # what diffusers' own functions for adapters look at
    for p in raw.parameters():
        p.requires_grad_(before.get(p, False))
    for _, layer in lora_layers(raw):
        layer.set_scale(name, scale)
        layer._active_adapter = [*held, name]  # `set_adapter` would have them trained
    return name


def _state(raw: nn.Module, changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """peft's tensors of the changes."""
    layers, state = layers_of(raw), {}
    biased = any(change.bias is not None for change in changes.values())  # peft: of all layers, or of none
    for name, change in changes.items():
        state[f"{name}.lora_A.weight"] = change.a
        state[f"{name}.lora_B.weight"] = _kernels(change.b, layers[name].weight)
        if biased:
            state[f"{name}.lora_B.bias"] = torch.zeros(len(change.b)) if change.bias is None else change.bias
    return state


def _kernels(b: Tensor, weight: Tensor) -> Tensor:
    """B [o,r] as its layer has it: kernels of 1 where the weight has kernels."""
    return b.reshape(*b.shape, *[1] * (weight.ndim - 2))


def _beside(state: Mapping[str, Tensor], raw: nn.Module) -> dict[str, Tensor]:
    """The tensors in the types and on the devices of the layers that they are for."""
    found = {}
    for key, tensor in state.items():
        weight = raw.get_submodule(key.partition(".lora_")[0])
        weight = (weight.get_base_layer() if isinstance(weight, LoraLayer) else weight).weight
        dtype = weight.dtype if weight.is_floating_point() else torch.float32  # a quantised one has none
        found[key] = tensor.to(weight.device, dtype)
    return found


def config_of(changes: Mapping[str, Change]) -> LoraConfig:
    """peft's configuration of such changes: alpha is r, as it is in B already."""
    rank = Counter(change.rank for change in changes.values()).most_common(1)[0][0]
    others = {f"^{name}": change.rank for name, change in changes.items() if change.rank != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=sorted(changes),
        lora_bias=any(change.bias is not None for change in changes.values()),
    )


def _free_name(wanted: str, held: list[str]) -> str:
    """A name that peft takes for a part of a module's, and no other adapter has."""
    base = re.sub(r"\W", "_", wanted) or "lora"
    return next(name for name in (base, *(f"{base}_{i}" for i in range(2, len(held) + 3))) if name not in held)


# --- what is in a model ----------------------------------------------------------------------------------------------


def raw_of(model: nn.Module) -> nn.Module:
    """The module that has the layers' names: diffusers' own of a backbone over one."""
    return model.raw if isinstance(getattr(model, "raw", None), nn.Module) else model


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The layers that have LoRA around them, by their names in `raw_of(model)`."""
    return ((name, module) for name, module in raw_of(model).named_modules() if isinstance(module, LoraLayer))


def adapters_in(model: nn.Module) -> list[str]:
    """Names of the LoRA that a model has, in the order in which they came."""
    return list(dict.fromkeys(name for _, layer in lora_layers(model) for name in layer.lora_A))


def merge(model: nn.Module) -> None:
    """Adds all active LoRA to the weights: the model is a plain one afterwards. Raises UserError for nan in them."""
    try:
        for _, layer in lora_layers(model):
            layer.merge(safe_merge=True)
    except ValueError as error:
        raise UserError(f"a LoRA cannot be merged ({error}): give another, or a smaller scale") from None
    unload(model)


def unload(model: nn.Module) -> None:
    """Takes all LoRA out: the model is a plain one afterwards."""
    raw = raw_of(model)
    for name, layer in list(lora_layers(raw)):
        raw.set_submodule(name, layer.get_base_layer())
    if hasattr(raw, "peft_config"):
        del raw.peft_config
    if hasattr(raw, "_hf_peft_config_loaded"):
        raw._hf_peft_config_loaded = False


# --- to files --------------------------------------------------------------------------------------------------------


def changes_in(model: nn.Module, adapter: str = "default") -> dict[str, Change]:
    """What a LoRA of a model changes, alpha and scale put into B. Raises UserError where there is none of that name."""
    found = {}
    for name, layer in lora_layers(model):
        if adapter in layer.lora_A:
            a, b, scale = layer.lora_A[adapter].weight, layer.lora_B[adapter], layer.scaling[adapter]
            bias = None if b.bias is None else b.bias.detach().float() * scale
            found[name] = Change(a.detach().float(), b.weight.detach().float().flatten(1) * scale, bias)
    if not found:
        raise UserError(f"the model has no LoRA {adapter!r} to save: it has {', '.join(adapters_in(model)) or 'none'}")
    return found


def save_lora(
    model: nn.Module,
    folder: str | Path,
    adapter: str = "default",
    naming: Naming = "diffusers",
    dtype: torch.dtype = torch.float32,
    name: str = FILE,
) -> Path:
    """Writes a LoRA of the model as a file of its own in `folder`, and returns its path.

    Alpha is in B and equals r, so that a reader who looks for alpha and one who does not get the same. `diffusers`:
    with diffusers' names and metadata, for `load_lora_weights`; `comfyui`: with ComfyUI's. Wan 2.2's two experts have
    a file each.
    """
    changes = changes_in(model, adapter)
    tensors, header = (_for_comfyui if naming == "comfyui" else _for_diffusers)(raw_of(model), changes)
    path = Path(folder) / name
    check_name(path, "name", more=40)
    tensors = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
    with written_whole(path) as beside:
        save_file(tensors, beside, metadata={"format": "pt", **header})
        follow_umask(beside)
    return path


def _for_diffusers(raw: nn.Module, changes: Mapping[str, Change]) -> tuple[dict[str, Tensor], dict[str, str]]:
    config = {f"transformer.{key}": _plain(value) for key, value in config_of(changes).to_dict().items()}
    tensors = {f"transformer.{key}": tensor for key, tensor in _state(raw, changes).items()}
    return tensors, {LORA_ADAPTER_METADATA_KEY: json.dumps(config, indent=2, sort_keys=True)}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def _for_comfyui(raw: nn.Module, changes: Mapping[str, Change]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """With the names of the model's authors; parts of a joint layer are one LoRA of all their ranks."""
    layers, left, tensors = layers_of(raw), dict(changes), {}
    for written, place in foreign_places(raw).items():
        if not place.written or left.keys().isdisjoint(place.layers):
            continue
        rows = [layers[name].weight.shape[0] for name in place.layers]
        joint = _joined([left.pop(name, None) for name in place.layers], rows)
        if place.swapped:
            halves = [None if x is None else torch.cat(list(reversed(x.chunk(2)))) for x in (joint.b, joint.bias)]
            joint = Change(joint.a, *halves)
        tensors |= _tensors(written, joint, layers[place.layers[0]].weight)
    for name, change in left.items():
        tensors |= _tensors(name, change, layers[name].weight)
    return {f"diffusion_model.{key}": tensor for key, tensor in tensors.items()}, {}


def _joined(parts: list[Change | None], rows: list[int]) -> Change:
    """The parts of a joint layer's rows (None: unchanged) as one: A one above the other, B a block of each."""
    if len(parts) == 1:
        return parts[0]
    there = [part for part in parts if part is not None]
    b = torch.block_diag(*(torch.zeros(n, 0) if part is None else part.b for part, n in zip(parts, rows, strict=True)))
    bias = None
    if any(part.bias is not None for part in there):
        bias = torch.cat([_bias(part, n) for part, n in zip(parts, rows, strict=True)])
    return Change(torch.cat([part.a for part in there]), b, bias)


def _bias(part: Change | None, rows: int) -> Tensor:
    return torch.zeros(rows) if part is None or part.bias is None else part.bias


def _tensors(name: str, change: Change, weight: Tensor) -> dict[str, Tensor]:
    found = {f"{name}.lora_A.weight": change.a, f"{name}.lora_B.weight": _kernels(change.b, weight)}
    return found if change.bias is None else found | {f"{name}.diff_b": change.bias}
