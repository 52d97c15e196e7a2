"""Files of LoRA: any that is met for a known transformer is read whole or refused; ours are written for all to read.

Axes: r rank, i inputs of a layer, o its outputs. A LoRA adds B (A x) to a layer's output, A [r,i] and B [o,r], times
alpha / r where its file says alpha. Here alpha is in B already.

| format        | a layer's tensors                                                    | alpha                     |
|---------------|----------------------------------------------------------------------|---------------------------|
| diffusers     | `transformer.NAME.lora_A.weight`, `lora_B`; older: `lora.down`, `up` | the file's metadata, or r |
| peft          | `base_model.model.NAME.lora_A.weight`, `lora_B`                      | adapter_config.json, or r |
| ComfyUI       | `diffusion_model.NAME.lora_A.weight`, `lora_B`, `lora_down`, `up`    | `NAME.alpha`, or r        |
|               | `diffusion_model.NAME.diff`, `diff_b`                                | none                      |
| kohya, musubi | `lora_unet_NA_ME.lora_down.weight`, `lora_up`                        | `lora_unet_NA_ME.alpha`   |

NAME is diffusers' or one of layer_names.py. `diff` and `diff_b` are changes of a weight and a bias themselves.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...errors import UserError, brief
from ...files import file_fault
from ...weights import read_object
from .layer_names import Place, layers_of, places

FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls it
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
METADATA = "lora_adapter_metadata"  # of diffusers, in the file's header
PREFIXES = (
    *("base_model.model.", "transformer.", "model.diffusion_model.", "diffusion_model.", "pipe.dit.", "model.", "dit."),
    *("lora_unet_", "lora_transformer_", "lycoris_", "unet.", "module."),
)
NAMED = 3  # tensors that a message names

_MATRIX = re.compile(r"(.+)\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?:\.[^.]+)?\.(weight|bias)")
_OTHER = re.compile(r"(.+)\.(alpha|diff|diff_b)")
_DOWN = ("lora_A", "lora_down", "lora.down")


@dataclass(frozen=True, eq=False)
class Change:
    """Of one layer: B (A x), and what is added to its bias.

    a: [r,i], of a convolution [r,i,kt,kh,kw]. b: [o,r]. bias: [o], or None. All float32.
    """

    a: Tensor
    b: Tensor
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def read_lora(raw: nn.Module, file: str | Path) -> dict[str, Change]:
    """The changes that a file makes to the layers of `raw`, by their names in it.

    file: or the folder in which it is the only one. Raises UserError, which names the first ones, where a tensor that
    is not all zeros has no place in the model, or does not fit there.
    """
    file = find_file(file)
    tensors, metadata = _open(file)
    known, pieces, lost = places(raw), defaultdict(dict), []
    where: dict[str, Place] = {}
    for key, tensor in tensors.items():
        layer, what = _parsed(key)
        place = None if layer is None else _place(known, layer)
        if place is None:
            if what != "alpha" and tensor.any():  # what is all zeros changes nothing, alpha alone neither
                lost.append(key)
            continue
        where[layer] = place
        if what in pieces[layer]:
            raise UserError(f"{file} has {what} of {layer} twice: it is not a LoRA of one model")
        pieces[layer][what] = tensor
    lost += _halves(pieces)
    if lost:
        raise UserError(_refusal(file, lost, len(tensors), raw))
    alphas = _Alphas(file, metadata)
    layers, found = layers_of(raw), {}
    for layer, of_layer in pieces.items():
        for name, change in _changes(file, layer, of_layer, where[layer], layers, alphas).items():
            found[name] = _both(found[name], change) if name in found else change
    if not found:
        raise UserError(f"{file} holds no LoRA: give the file that a trainer of LoRA wrote")
    return found


def find_file(file: str | Path) -> Path:
    """The file itself, where a folder is given: diffusers' or peft's name, or the only one that is there."""
    file = Path(file)
    if file.is_dir():
        named = [file / name for name in (FILE, PEFT_FILE) if (file / name).is_file()]
        found = named or sorted(file.glob("*.safetensors"))
        if len(found) != 1:
            raise UserError(f"{file} holds {len(found)} files of tensors: give the LoRA's own file (FILE.safetensors)")
        file = found[0]
    if fault := file_fault(file):
        raise UserError(f"{file} {fault}: give a LoRA's .safetensors file, or the folder that it is in")
    return file


def _open(file: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors, and what diffusers noted of the adapter."""
    if file.suffix != ".safetensors":
        raise UserError(f"{file} can hold code that runs as it is read: give a LoRA as .safetensors")
    try:
        with safe_open(file, "pt") as held:
            tensors = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118
            noted = (held.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({brief(error)}): it is damaged, copy it again") from None
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise UserError(f"{file} has numbers that are nan or infinite in {bad[0]}: it is of no use")
    if noted is not None:
        try:
            found = json.loads(noted)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{file}: {METADATA} in its header is no JSON object: it is damaged, copy it again")
        return tensors, {key.partition(".")[2]: value for key, value in found.items()}  # of `transformer.`
    if file.name == PEFT_FILE and (file.parent / PEFT_CONFIG).is_file():
        return tensors, read_object(file.parent / PEFT_CONFIG)
    return tensors, None


def _parsed(key: str) -> tuple[str | None, str]:
    """The layer as the file names it, and what of it the tensor is: a, b, bias, alpha, diff or diff_b."""
    if match := _MATRIX.fullmatch(key):
        layer, matrix, kind = match.groups()
        down = matrix in _DOWN
        if kind == "bias":
            return (None, key) if down else (layer, "bias")
        return layer, "a" if down else "b"
    if match := _OTHER.fullmatch(key):
        return match[1], match[2]
    return None, key


def _place(known: Mapping[str, Place], layer: str) -> Place | None:
    """The layer's place, with as few of the prefixes taken off as need be."""
    while layer not in known:
        prefix = next((prefix for prefix in PREFIXES if layer.startswith(prefix)), None)
        if prefix is None:
            return None
        layer = layer.removeprefix(prefix)
    return known[layer]


def _halves(pieces: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Matrices whose other one is missing, and biases without them."""
    wholes = {"a", "b"}
    return [
        f"{layer}: {' and '.join(sorted(of_layer.keys() & {'a', 'b', 'bias'}))} alone"
        for layer, of_layer in pieces.items()
        if of_layer.keys() & {"a", "b", "bias"} and not wholes <= of_layer.keys()
    ]


def _refusal(file: Path, lost: list[str], count: int, raw: nn.Module) -> str:
    kinds = {"DoRA": ("dora_scale", "magnitude"), "LoKr": ("lokr_",), "LoHa": ("hada_",), "Tucker": ("lora_mid",)}
    kind = next((kind for kind, signs in kinds.items() if any(sign in key for key in lost for sign in signs)), None)
    fix = f"it is of the kind {kind}; LoRA alone is read" if kind else "it was made for another model"
    few = ", ".join(lost[:NAMED]) + (", ..." if len(lost) > NAMED else "")
    return f"{file}: {len(lost)} of its {count} tensors find no place in this {type(raw).__name__} ({few}): {fix}"


class _Alphas:
    """alpha / r of layers whose file says it for all at once."""

    def __init__(self, file: Path, config: Mapping[str, Any] | None) -> None:
        self.config = config
        if config is not None and not isinstance(config.get("lora_alpha", 1), int | float):
            raise UserError(f"{file}: lora_alpha is {config['lora_alpha']!r}, not a number: it is damaged")
        if config is not None and config.get("use_dora"):
            raise UserError(f"{file} is of the kind DoRA; LoRA alone is read")

    def scale(self, layer: str, rank: int) -> float:
        """layer: its name here."""
        if self.config is None or "lora_alpha" not in self.config:
            return 1.0
        pattern = self.config.get("alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(list(pattern), layer), self.config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def _changes(
    file: Path,
    layer: str,
    pieces: Mapping[str, Tensor],
    place: Place,
    layers: Mapping[str, nn.Module],
    alphas: _Alphas,
) -> dict[str, Change]:
    """Of each of our layers that one of the file's stands for."""
    rows = [layers[name].weight.shape[0] for name in place.layers]
    into = tuple(layers[place.layers[0]].weight.shape[1:])
    found: dict[str, Change] = {}
    for a, b, bias, learned in _matrices(pieces, into, sum(rows)):
        if tuple(a.shape[1:]) != into or b.shape != (sum(rows), len(a)) or bias.shape != (sum(rows),):
            raise UserError(
                f"{file}: {layer} has {list(a.shape)} and {list(b.shape)}, and the model's is {[sum(rows), *into]}: it "
                "was made for a model of another size"
            )
        if place.swapped:
            b, bias = (torch.cat([x[len(x) // 2 :], x[: len(x) // 2]]) for x in (b, bias))
        for name, of_b, of_bias in zip(place.layers, b.split(rows), bias.split(rows), strict=True):
            scale = 1.0
            if learned:
                scale = float(pieces["alpha"].max()) / len(a) if "alpha" in pieces else alphas.scale(name, len(a))
            change = Change(a, of_b * scale, of_bias * scale if bias.any() else None)
            if len(place.layers) > 1:
                change = _without_idle(change)
            found[name] = _both(found[name], change) if name in found else change
    return found


def _matrices(
    pieces: Mapping[str, Tensor], into: tuple[int, ...], rows: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, bool]]:
    """A, B, the bias's change, and whether alpha / r is still to be put in; changes of the weight as products too."""
    tensors = {key: tensor.float() for key, tensor in pieces.items()}
    none = torch.zeros(rows)
    if "a" in tensors:
        a, b = tensors["a"], tensors["b"].flatten(1)  # B of a convolution has kernels of 1
        if len(into) == 1:
            a = a.flatten(1)  # as kohya's of linear layers may have
        yield a, b, tensors.get("bias", none), True
    if "diff" in tensors and tensors["diff"].any():
        diff = tensors["diff"]
        wide = len(into) > 1 or len(diff) <= diff.shape[-1]
        yield (diff, torch.eye(len(diff)), none, False) if wide else (torch.eye(diff.shape[1]), diff, none, False)
    if "diff_b" in tensors and tensors["diff_b"].any():
        yield torch.zeros(1, *into), torch.zeros(rows, 1), tensors["diff_b"], False


def _without_idle(change: Change) -> Change:
    """Without the ranks that B makes nothing of: a joint layer's ranks may each be of one part."""
    used = change.b.any(dim=0)
    used[0] |= ~used.any()
    return change if used.all() else Change(change.a[used], change.b[:, used], change.bias)


def _both(one: Change, other: Change) -> Change:
    """The sum of two changes of a layer."""
    biases = [change.bias for change in (one, other) if change.bias is not None]
    a, b = torch.cat([one.a, other.a]), torch.cat([one.b, other.b], dim=1)
    return Change(a, b, sum(biases) if biases else None)
