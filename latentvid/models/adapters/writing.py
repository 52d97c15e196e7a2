"""The tensors of an adapter's file, and its header, as others read them.

Alpha is in the matrices and equals r, so that a reader who looks for alpha and one who does not get the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from torch import Tensor, nn

from ...errors import UserError
from .changes import Change, Hadamard, LayerChange
from .layer_names import foreign_places, layers_of

Naming = Literal["diffusers", "comfyui"]
Written = tuple[dict[str, Tensor], dict[str, str]]


def tensors_of(raw: nn.Module, changes: Mapping[str, LayerChange], naming: Naming) -> Written:
    """The file's tensors and header. Raises UserError for a kind that diffusers has no form for."""
    if naming == "comfyui":
        return _for_comfyui(raw, changes)
    if others := sorted({change.kind for change in changes.values()} - {"lora", "dora"}):
        raise UserError(f"diffusers has no form for the kind {others[0]}: write it with naming='comfyui'")
    return _for_diffusers(raw, changes)


def _for_diffusers(raw: nn.Module, changes: Mapping[str, LayerChange]) -> Written:
    part = "unet" if type(raw).__name__.startswith("UNet") else "transformer"  # of diffusers' pipelines
    config = {f"{part}.{key}": _plain(value) for key, value in config_of(changes).to_dict().items()}
    layers, tensors = layers_of(raw), {}
    biased = any(change.bias is not None for change in changes.values())  # peft: of all layers, or of none
    for name, change in _alike(layers, changes).items():
        key, weight = f"{part}.{name}", layers[name].weight
        tensors[f"{key}.lora_A.weight"] = change.a
        tensors[f"{key}.lora_B.weight"] = kernels(change.b, weight)
        if biased:
            tensors[f"{key}.lora_B.bias"] = torch.zeros(len(change.b)) if change.bias is None else change.bias
        if change.magnitude is not None:
            flat = weight.ndim == 2
            tensors[f"{key}.lora_magnitude_vector"] = (
                change.magnitude if flat else change.magnitude.reshape(1, -1, *[1] * (weight.ndim - 2))
            )
    return tensors, {LORA_ADAPTER_METADATA_KEY: json.dumps(config, indent=2, sort_keys=True)}


def _alike(layers: Mapping[str, nn.Module], changes: Mapping[str, LayerChange]) -> dict[str, Change]:
    """peft has magnitudes of all layers, or of none."""
    if all(change.magnitude is None for change in changes.values()):
        return dict(changes)
    return {name: _with_magnitude(change, layers[name].weight) for name, change in changes.items()}


def _with_magnitude(change: LayerChange, weight: Tensor) -> LayerChange:
    """The same as a DoRA: magnitudes of the rows that it makes."""
    if change.magnitude is not None:
        return change
    rows = (weight.detach().float() + change.dense(weight.detach())).flatten(1)
    return replace(change, magnitude=rows.norm(dim=1).cpu())


def config_of(changes: Mapping[str, LayerChange]) -> LoraConfig:
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
        use_dora=any(change.magnitude is not None for change in changes.values()),
    )


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


# --- ComfyUI's and LyCORIS' ------------------------------------------------------------------------------------------


def _for_comfyui(raw: nn.Module, changes: Mapping[str, LayerChange]) -> Written:
    """With the names of the model's authors; parts of a joint layer are one adapter of all their ranks.

    Of LoKr, which cannot be joined, the parts stay apart under diffusers' names.
    """
    layers, left, tensors = layers_of(raw), dict(changes), {}
    for written, place in foreign_places(raw).items():
        if not place.written or left.keys().isdisjoint(place.layers):
            continue
        weights = [layers[name].weight for name in place.layers]
        joint = _joined([left.get(name) for name in place.layers], weights)
        if joint is not None and place.swapped:
            joint = joint.take(torch.cat(list(reversed(torch.arange(len(weights[0])).chunk(2)))))
        if joint is None:
            continue
        for name in place.layers:
            left.pop(name, None)
        tensors |= _pieces(written, joint, weights[0])
    for name, change in left.items():
        tensors |= _pieces(name, change, layers[name].weight)
    return {f"diffusion_model.{key}": tensor for key, tensor in tensors.items()}, {}


def _joined(parts: list[LayerChange | None], weights: list[Tensor]) -> LayerChange | None:
    """The parts of a joint layer's rows (None: unchanged) as one: matrices of inputs one above the other, of outputs a
    block of each. None where the kind cannot be joined."""
    if len(parts) == 1:
        return parts[0]
    there = [part for part in parts if part is not None]
    kinds = {type(part) for part in there}
    if kinds == {Change}:
        b = _blocks([None if part is None else part.b for part in parts], weights)
        joint: LayerChange = Change(torch.cat([part.a for part in there]), b)
    elif kinds == {Hadamard}:
        outputs = {
            name: _blocks([None if part is None else getattr(part, name) for part in parts], weights)
            for name in ("w1_a", "w2_a")
        }
        inputs = {name: torch.cat([getattr(part, name) for part in there]) for name in ("w1_b", "w2_b")}
        joint = Hadamard(**outputs, **inputs)
    else:
        return None
    return replace(joint, **_rest(parts, weights))


def _blocks(parts: list[Tensor | None], weights: list[Tensor]) -> Tensor:
    return torch.block_diag(
        *(torch.zeros(len(w), 0) if part is None else part for part, w in zip(parts, weights, strict=True))
    )


def _rest(parts: list[LayerChange | None], weights: list[Tensor]) -> dict[str, Tensor]:
    """Biases and magnitudes of a joint layer, where a part has some."""
    there, found = [part for part in parts if part is not None], {}
    if any(part.bias is not None for part in there):
        found["bias"] = torch.cat([_bias(part, len(w)) for part, w in zip(parts, weights, strict=True)])
    if any(part.magnitude is not None for part in there):
        none = [w.detach().float().flatten(1).norm(dim=1).cpu() for w in weights]
        found["magnitude"] = torch.cat(
            [
                norm if part is None else _with_magnitude(part, w).magnitude
                for part, w, norm in zip(parts, weights, none, strict=True)
            ]
        )
    return found


def _bias(part: LayerChange | None, rows: int) -> Tensor:
    return torch.zeros(rows) if part is None or part.bias is None else part.bias


def _pieces(name: str, change: LayerChange, weight: Tensor) -> dict[str, Tensor]:
    if isinstance(change, Change):
        found = {f"{name}.lora_A.weight": change.a, f"{name}.lora_B.weight": kernels(change.b, weight)}
    else:
        stem, matrices = "hada" if isinstance(change, Hadamard) else "lokr", change.tensors()
        found = {f"{name}.{stem}_{key}": x for key, x in matrices.items() if key not in ("bias", "magnitude")}
        if change.rank is not None:
            found[f"{name}.alpha"] = torch.tensor(float(change.rank))
    if change.bias is not None:
        found[f"{name}.diff_b"] = change.bias
    if change.magnitude is not None:
        found[f"{name}.dora_scale"] = change.magnitude.reshape(-1, *[1] * (weight.ndim - 1))
    return found


def kernels(b: Tensor, weight: Tensor) -> Tensor:
    """B [o,r] as its layer has it: kernels of 1 where the weight has kernels."""
    return b.reshape(*b.shape, *[1] * (weight.ndim - 2))
