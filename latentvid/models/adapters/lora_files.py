"""Files of adapters: any that is met for a known transformer is read whole or refused.

Axes: r rank, i inputs of a layer, o its outputs. What is read has alpha / r in it.

| format        | a layer's tensors (pieces: keys.py)        | alpha                     |
|---------------|--------------------------------------------|---------------------------|
| diffusers     | `transformer.NAME.PIECE`, `unet.NAME...`   | the file's metadata, or r |
| peft          | `base_model.model.NAME.PIECE`              | adapter_config.json, or r |
| ComfyUI       | `diffusion_model.NAME.PIECE`               | `NAME.alpha`, or r        |
| kohya, musubi | `lora_unet_NA_ME.PIECE`; `lycoris_NA_ME`   | `lora_unet_NA_ME.alpha`   |

NAME is diffusers' or one of layer_names.py. Of a LoKr whose two matrices are whole LyCORIS leaves alpha out, which has
no rank to stand over; peft has that of its configuration.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...errors import UserError, brief
from ...files import file_fault, inside
from ...limits import shown
from ...weights import read_object
from .changes import Change, Hadamard, Kronecker, LayerChange, as_lora, both
from .keys import HADAMARD, fault_in, fault_of, kind_of, other_kind, parsed, rank_of, without_prefix
from .layer_names import Place, layers_of, places

FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls it
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
METADATA = "lora_adapter_metadata"  # of diffusers, in the file's header
OF_TEXT = ("lora_te", "text_encoder")  # beginnings of tensors' names that change a text encoder
NAMED = 3  # tensors that a message names


def read_lora(raw: nn.Module, file: str | Path) -> dict[str, LayerChange]:
    """The changes that a file makes to the layers of `raw`, by their names in it, whatever their kind.

    file: or the folder in which it is the only one. Raises UserError, which names the first ones, where a tensor that
    is not all zeros has no place in the model, or does not fit there.
    """
    file = find_file(file)
    tensors, metadata = open_adapter(file)[:2]
    known, pieces, lost = places(raw), defaultdict(dict), []
    where: dict[str, Place] = {}
    for key, tensor in tensors.items():
        layer, piece = parsed(key)
        name = None if layer is None else without_prefix(known, layer)
        if name is None:
            if piece != "alpha" and tensor.any():  # what is all zeros changes nothing, alpha alone neither
                lost.append(key)
            continue
        where[layer] = known[name]
        if piece in pieces[layer]:
            raise UserError(f"{file} has {piece} of {layer} twice: it is not a LoRA of one model")
        pieces[layer][piece] = tensor
    lost += [fault for layer, of_layer in pieces.items() if (fault := fault_of(layer, of_layer))]
    if lost:
        raise UserError(_refusal(file, lost, len(tensors), raw))
    alphas = _Alphas(file, metadata)
    layers, found = layers_of(raw), {}
    for layer, of_layer in pieces.items():
        for name, change in _changes(file, layer, of_layer, where[layer], layers, alphas).items():
            sum_of_both = both(found[name], change) if name in found else change
            if sum_of_both is None:
                raise UserError(f"{file} changes {name} by two names, and not by LoRA alone: it is not of one model")
            found[name] = sum_of_both
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
            usual = inside(file, "lora", "the LoRA's own file (FILE.safetensors)")
            raise UserError(f"{file} holds {len(found)} files of tensors: give {usual}")
        file = found[0]
    if fault := file_fault(file):
        raise UserError(f"{file} {fault}: give a LoRA's .safetensors file, or the folder that it is in")
    return file


def header_of(file: str | Path) -> dict[str, str]:
    """What a LoRA's file says beside its tensors. Raises UserError."""
    file = find_file(file)
    try:
        with safe_open(file, "pt") as held:
            return held.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({brief(error)}): it is damaged, copy it again") from None


def open_adapter(file: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None, dict[str, str]]:
    """The tensors, the configuration of peft that diffusers or peft noted, and the file's header."""
    if file.suffix != ".safetensors":
        raise UserError(f"{file} can hold code that runs as it is read: give a LoRA as .safetensors")
    try:
        with safe_open(file, "pt") as held:
            tensors = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118
            header = held.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({brief(error)}): it is damaged, copy it again") from None
    for key, tensor in tensors.items():
        if fault := fault_in(key, tensor):
            raise UserError(f"{file}: {key} {fault}: the file is of no use")
    if (noted := header.get(METADATA)) is not None:
        try:
            found = json.loads(noted)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{file}: {METADATA} in its header is no JSON object: it is damaged, copy it again")
        own = {key.partition(".")[2]: value for key, value in found.items()}  # without `transformer.`, `unet.`
        return tensors, own, header
    if file.name == PEFT_FILE and (file.parent / PEFT_CONFIG).is_file():
        return tensors, read_object(file.parent / PEFT_CONFIG), header
    return tensors, None, header


def _refusal(file: Path, lost: list[str], count: int, raw: nn.Module) -> str:
    kind = other_kind(lost)
    fix = f"it is of the kind {kind}, which is not read" if kind else "it was made for another model"
    if all(key.startswith(OF_TEXT) for key in lost):
        fix = "they change the text encoder, which stays as it is: give a LoRA of the network alone"
    few = ", ".join(lost[:NAMED]) + (", ..." if len(lost) > NAMED else "")
    return f"{file}: {len(lost)} of its {count} tensors find no place in this {type(raw).__name__} ({few}): {fix}"


class _Alphas:
    """alpha / r of layers whose file says it for all at once."""

    def __init__(self, file: Path, config: Mapping[str, Any] | None) -> None:
        self.file, self.config = file, config or {}
        for key in ("lora_alpha", "alpha", "r"):
            self._check(key, self.config.get(key, 1), whole=key == "r")
        for key in ("alpha_pattern", "rank_pattern"):
            patterns = self.config.get(key) or {}
            if not isinstance(patterns, dict):
                raise UserError(f"{file}: {key} is {shown(patterns)}, and no numbers by layers' names: it is damaged")
            for name, value in patterns.items():
                self._check(f"{key} of {name}", value, whole=key == "rank_pattern")
                try:
                    re.compile(rf"(.*\.)?({name})$")  # as peft finds it
                except re.error as error:
                    raise UserError(f"{file}: {key} has {name!r}, no pattern ({error}): it is damaged") from None

    def _check(self, key: str, value: Any, whole: bool) -> None:
        """Raises UserError for what is no finite number, or for a rank below 1."""
        number = isinstance(value, int | float) and math.isfinite(value)
        if not number or (whole and value < 1):
            what = "a rank" if number else "a number"
            raise UserError(f"{self.file}: {key} is {shown(value)}, not {what}: it is damaged")

    def scale(self, layer: str, rank: int | None, lora: bool) -> float:
        """layer: its name here. rank: None where its matrices are whole."""
        key = "lora_alpha" if lora else "alpha"
        if key not in self.config:
            return 1.0
        alpha = self._of(layer, "alpha_pattern", key)
        if rank is None:
            rank = self._of(layer, "rank_pattern", "r") if "r" in self.config else alpha or 1.0
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _of(self, layer: str, pattern: str, key: str) -> float:
        patterns = self.config.get(pattern) or {}
        return patterns.get(get_pattern_key(list(patterns), layer), self.config[key])


def _changes(
    file: Path,
    layer: str,
    pieces: Mapping[str, Tensor],
    place: Place,
    layers: Mapping[str, nn.Module],
    alphas: _Alphas,
) -> dict[str, LayerChange]:
    """Of each of our layers that one of the file's stands for."""
    rows = [layers[name].weight.shape[0] for name in place.layers]
    into, tensors = tuple(layers[place.layers[0]].weight.shape[1:]), {k: t.float() for k, t in pieces.items()}
    size = (sum(rows), *into)
    change, direct = _matrices(file, layer, tensors, size), _direct(file, layer, tensors, size)
    if change is not None and change.kind == "lora" and alphas.config.get("use_dora"):
        raise UserError(f"{file}: its configuration says DoRA, and {layer} has no magnitudes: copy it again")
    of_rows = torch.arange(size[0])
    if place.swapped:
        of_rows = torch.cat(list(reversed(of_rows.chunk(2))))
    found: dict[str, LayerChange] = {}
    for name, mine in zip(place.layers, of_rows.split(rows), strict=True):
        if change is not None:
            alpha, rank = tensors.get("alpha"), rank_of(tensors)
            if alpha is not None:
                scale = 1.0 if rank is None else float(alpha.max()) / rank
            else:
                scale = alphas.scale(name, rank, "a" in tensors)
            # rows of a LoKr that are no whole blocks of it can be said by P itself alone
            part = change.take(mine) or as_lora(change.product(), change.bias, change.magnitude).take(mine)
            part = part.times(scale)
            found[name] = _without_idle(part) if len(place.layers) > 1 and part.kind == "lora" else part
        for also in direct:
            mine_too = also.take(mine)
            found[name] = _beside(file, layer, found[name], mine_too) if name in found else mine_too
    return found


def _matrices(file: Path, layer: str, tensors: Mapping[str, Tensor], size: tuple[int, ...]) -> LayerChange | None:
    """What the matrices say, alpha left out; None where there are none. size: of the layer's weight in the file."""
    kind, more = kind_of(tensors), {}
    if kind is None:
        return None
    if kind in ("lora", "dora"):
        a, b = tensors["a"], tensors["b"].flatten(1)  # B of a convolution has kernels of 1
        if "mid" in tensors:
            if not _follow(tensors["mid"], a):
                raise _of_another_size(file, f"{layer}.lora_mid", str(list(tensors["mid"].shape)), size)
            a = torch.einsum("rs...,si->ri...", tensors["mid"], a.flatten(1))
        a = a.flatten(1) if len(size) == 2 else a  # as kohya's of linear layers may have kernels
        change: LayerChange = Change(a, b)
        fits = tuple(change.a.shape[1:]) == size[1:] and b.shape == (size[0], len(a))
        said = f"{list(a.shape)} and {list(b.shape)}"
    else:
        change, said, fits = (_loha if kind == "loha" else _lokr)(tensors, size)
    if "bias" in tensors:
        more["bias"] = tensors["bias"]
    if "magnitude" in tensors:
        more["magnitude"] = tensors["magnitude"].flatten()
        if tensors["magnitude"].ndim == 2 and tensors["magnitude"].shape[0] == 1 and size[0] != 1 and len(size) == 2:
            raise UserError(f"{file}: dora_scale of {layer} is of the layer's inputs; that of its outputs is read")
    if not fits or any(x.shape != (size[0],) for x in more.values()):
        raise _of_another_size(file, layer, said, size)
    return replace(change, **more)


def _of_another_size(file: Path, layer: str, said: str, size: tuple[int, ...]) -> UserError:
    return UserError(
        f"{file}: {layer} has {said}, and the model's is {list(size)}: it was made for a model of another size"
    )


def _loha(tensors: Mapping[str, Tensor], size: tuple[int, ...]) -> tuple[LayerChange, str, bool]:
    """The change, its matrices in words, and whether they fit the weight."""
    parts = [tensors[name] for name in HADAMARD]
    said = " and ".join(str(list(part.shape)) for part in parts)
    if "hada_t1" in tensors:
        kernels = tensors["hada_t1"], tensors["hada_t2"]
        if not all(_fits_tucker(t, *parts[2 * i : 2 * i + 2]) for i, t in enumerate(kernels)):
            return as_lora(parts[0]), said, False
        product = _tucker(tensors["hada_t1"], *parts[:2]) * _tucker(tensors["hada_t2"], *parts[2:])
        return as_lora(product), said, product.shape == size
    change = Hadamard(*parts)
    shapes = (parts[0].shape[0], parts[1].shape[1]), (parts[2].shape[0], parts[3].shape[1])
    follow = _follow(*parts[:2]) and _follow(*parts[2:])
    if not shapes[0] == shapes[1] == (size[0], math.prod(size[1:])) or not follow:
        return change, said, False
    return (change if len(size) == 2 else as_lora(change.product().reshape(size))), said, True


def _lokr(tensors: Mapping[str, Tensor], size: tuple[int, ...]) -> tuple[LayerChange, str, bool]:
    pairs = []
    for name in ("lokr_w1", "lokr_w2"):
        pairs.append(tuple(tensors[key] for key in (name, f"{name}_a", f"{name}_b") if key in tensors))
    said = " and ".join(str(list(part.shape)) for pair in pairs for part in pair)
    if "lokr_t2" in tensors:
        if not _fits_tucker(tensors["lokr_t2"], *pairs[1]):
            return Kronecker(*pairs), said, False
        pairs[1] = (_tucker(tensors["lokr_t2"], *pairs[1]),)
    if len(size) == 2:  # as those of linear layers may have kernels of 1
        pairs = [tuple(part.flatten(1) for part in pair) for pair in pairs]
    change = Kronecker(*pairs)
    if not all(len(pair) == 1 or _follow(*pair) for pair in pairs) or pairs[0][0].ndim != 2:
        return change, said, False
    if len(size) == 2:
        return change, said, change.shape == size
    w1, w2 = pairs[0][0] if len(pairs[0]) == 1 else pairs[0][0] @ pairs[0][1], pairs[1]
    w2 = w2[0] if len(w2) == 1 else w2[0] @ w2[1]
    if w1.shape[0] * w2.shape[0] != size[0] or w1.numel() * w2.numel() != math.prod(size):
        return change, said, False
    w2 = w2.reshape(w2.shape[0], size[1] // w1.shape[1], *size[2:])
    return as_lora(torch.kron(w1.reshape(*w1.shape, *[1] * len(size[2:])), w2)), said, True


def _follow(first: Tensor, second: Tensor) -> bool:
    """Whether the columns of a matrix, which may have kernels, are as many as the rows of the next one."""
    return first.shape[1] == len(second)


def _fits_tucker(kernel: Tensor, a: Tensor, b: Tensor) -> bool:
    return a.ndim == b.ndim == 2 and tuple(kernel.shape[:2]) == (len(a), len(b))


def _tucker(kernel: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[r,s,...], a [r,o] and b [s,i] -> [o,i,...], as LyCORIS has a convolution (its functional/general.py)."""
    return torch.einsum("rs...,ro,si->oi...", kernel, a, b)


def _direct(file: Path, layer: str, tensors: Mapping[str, Tensor], size: tuple[int, ...]) -> list[Change]:
    """The changes of the weight and of the bias themselves."""
    found = []
    for name, wanted in (("diff", size), ("diff_b", size[:1])):
        if name in tensors and tensors[name].any() and tensors[name].shape != wanted:
            raise _of_another_size(file, f"{layer}.{name}", str(list(tensors[name].shape)), wanted)
    if "diff" in tensors and tensors["diff"].any():
        found.append(as_lora(tensors["diff"]))
    if "diff_b" in tensors and tensors["diff_b"].any():
        found.append(Change(torch.zeros(1, *size[1:]), torch.zeros(size[0], 1), tensors["diff_b"]))
    return found


def _beside(file: Path, layer: str, change: LayerChange, direct: Change) -> LayerChange:
    if (sum_of_both := both(change, direct)) is not None:
        return sum_of_both
    if direct.bias is None:
        raise UserError(f"{file} changes {layer} by {change.kind} and by diff: it is not a LoRA of one model")
    return replace(change, bias=direct.bias if change.bias is None else change.bias + direct.bias)


def _without_idle(change: Change) -> Change:
    """Without the ranks that B makes nothing of: a joint layer's ranks may each be of one part."""
    used = change.b.any(dim=0)
    used[0] |= ~used.any()
    return change if used.all() else Change(change.a[used], change.b[:, used], change.bias)
