"""What a file of an adapter holds, told without the model that it is for."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ...errors import UserError
from .changes import NAMES
from .keys import PREFIXES, kind_of, other_kind, parsed, rank_of
from .lora_files import METADATA, find_file, open_adapter

FEW = 12  # names of layers that are shown
LONGEST = 200  # letters of a note in the header
_NAMING = {
    "transformer.": "diffusers",
    "unet.": "diffusers",
    "base_model.model.": "peft",
    "diffusion_model.": "ComfyUI",
    "model.diffusion_model.": "ComfyUI",
    "lora_unet_": "kohya",
    "lora_transformer_": "kohya",
    "lycoris_": "LyCORIS",
}


def describe(file: str | Path) -> str:
    """Kind, layers, rank, alpha, number of parameters and notes, a line each. Raises UserError for what is none."""
    file = find_file(file)
    tensors, config, header = open_adapter(file)
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    other = []
    for key, tensor in tensors.items():
        layer, piece = parsed(key)
        if layer is None:
            other.append(key)
        else:
            layers[layer][piece] = tensor
    kinds = Counter(
        NAMES[kind] if (kind := kind_of(of_layer)) else "changes of weights" for of_layer in layers.values()
    )
    if not layers or (other and len(other) == len(tensors)):
        known = other_kind(other)
        what = (
            f"it is of the kind {known}, which is not read" if known else "give the file that a trainer of LoRA wrote"
        )
        raise UserError(f"{file} holds no LoRA: {what}")
    ranks = [rank for of_layer in layers.values() if (rank := rank_of(of_layer)) is not None]
    count = sum(tensor.numel() for layer in layers.values() for piece, tensor in layer.items() if piece != "alpha")
    types = sorted({str(t.dtype).removeprefix("torch.") for layer in layers.values() for t in layer.values()})
    lines = {
        "kind": ", ".join(f"{name} ({n})" if len(kinds) > 1 else name for name, n in kinds.most_common()),
        "layers": f"{len(layers)}: {_layer_names(layers)}",
        "rank": _most(ranks) or "none: the matrices are whole",
        "alpha": _alpha(layers, config),
        "parameters": f"{count:,}, {', '.join(types)}",
        "names": _naming(layers),
    }
    if other:
        lines["not read"] = f"{len(other)} tensors: {', '.join(other[:3])}"
    notes = {key: value for key, value in header.items() if key not in ("format", METADATA)}
    if METADATA in header:
        notes[METADATA] = "of diffusers, peft's configuration"
    lines |= {f"note {key}": _short(value) for key, value in sorted(notes.items())}
    return "\n".join([str(file), *(f"  {key}: {value}" for key, value in lines.items())])


def _most(numbers: Iterable[float]) -> str:
    return ", ".join(
        f"{n:g}" if i == 0 else f"{n:g} ({c} layers)" for i, (n, c) in enumerate(Counter(numbers).most_common())
    )


def _alpha(layers: Mapping[str, Mapping[str, Tensor]], config: Mapping | None) -> str:
    written = [float(of_layer["alpha"].max()) for of_layer in layers.values() if "alpha" in of_layer]
    if written:
        return _most(written)
    noted = next((config[key] for key in ("lora_alpha", "alpha") if key in config), None) if config else None
    return "not said: the rank" if noted is None else f"{noted} (of the configuration beside the tensors)"


def _naming(layers: Iterable[str]) -> str:
    found = {next((_NAMING[p] for p in _NAMING if layer.startswith(p)), "bare") for layer in layers}
    return ", ".join(sorted(found))


def _layer_names(layers: Iterable[str]) -> str:
    """Distinct names without prefixes and blocks' numbers."""
    names = []
    for layer in layers:
        while prefix := next((prefix for prefix in PREFIXES if layer.startswith(prefix)), None):
            layer = layer.removeprefix(prefix)
        names.append(re.sub(r"(?<=[._])\d+(?=[._])", "N", layer))
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:FEW]) + (", ..." if len(distinct) > FEW else "")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
