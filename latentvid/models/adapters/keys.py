"""What the tensors of an adapter's file are, by their names alone.

A name is LAYER.PIECE. Pieces of a layer, in whatever way they are written:

| piece | written |
|-------|---------|
| a, b of LoRA | `lora_A.weight`, `lora_B.weight`; `lora_down`, `lora_up`; `lora.down`, `lora.up` |
| mid, of a convolution's A | `lora_mid.weight` |
| magnitude of DoRA | peft: `lora_magnitude_vector`; LyCORIS, kohya, ComfyUI: `dora_scale` |
| hada_w1_a ... of LoHa, lokr_w1 ... of LoKr | by these names, alike by peft and LyCORIS |
| alpha; bias of B | `alpha`; `lora_B.bias` |
| diff, diff_b | changes of the weight and the bias themselves |
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from .changes import Kind

PREFIXES = (
    *("base_model.model.", "transformer.", "model.diffusion_model.", "diffusion_model.", "pipe.dit.", "model.", "dit."),
    *("lora_unet_", "lora_transformer_", "lycoris_", "unet.", "module."),
)
HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
TUCKER = ("mid", "hada_t1", "hada_t2", "lokr_t2")  # the kernel of a convolution, between the matrices

_MATRIX = re.compile(r"(.+)\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|lora_mid)(?:\.[^.]+)?\.(weight|bias)")
_MAGNITUDE = re.compile(r"(.+)\.(?:lora_magnitude_vector|dora_scale)(?:\.[^.]+)?(?:\.weight)?")
_OTHER = re.compile(r"(.+)\.(alpha|diff|diff_b|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))(?:\.default)?")
_MATRICES = ("a", "b", *HADAMARD, *(f"lokr_w{n}{end}" for n in (1, 2) for end in ("", "_a", "_b")), *TUCKER)
_DOWN = ("lora_A", "lora_down", "lora.down")
_OTHER_KINDS = {"OFT": ("oft_",), "GLoRA": (".a1.weight", ".b1.weight"), "IA3": ("on_input",), "VeRA": ("vera_",)}


def parsed(key: str) -> tuple[str | None, str]:
    """The layer as the file names it (None: the name says nothing of an adapter), and the piece."""
    if match := _MATRIX.fullmatch(key):
        layer, matrix, kind = match.groups()
        down = matrix in _DOWN
        if matrix == "lora_mid":
            return (layer, "mid") if kind == "weight" else (None, key)
        if kind == "bias":
            return (None, key) if down else (layer, "bias")
        return layer, "a" if down else "b"
    if match := _MAGNITUDE.fullmatch(key):
        return match[1], "magnitude"
    if match := _OTHER.fullmatch(key):
        return match[1], match[2]
    return None, key


def without_prefix(known: Mapping[str, Any], layer: str) -> str | None:
    """A layer's name as it is among those known, with as few of the prefixes taken off as need be."""
    while layer not in known:
        prefix = next((prefix for prefix in PREFIXES if layer.startswith(prefix)), None)
        if prefix is None:
            return None
        layer = layer.removeprefix(prefix)
    return layer


def kind_of(pieces: Collection[str]) -> Kind | None:
    """By a layer's pieces; None where these are changes of the weight itself, or alpha alone."""
    if any(piece.startswith("hada_") for piece in pieces):
        return "loha"
    if any(piece.startswith("lokr_") for piece in pieces):
        return "lokr"
    if {"a", "b"} & set(pieces):
        return "dora" if "magnitude" in pieces else "lora"
    return None


def rank_of(pieces: Mapping[str, Tensor]) -> int | None:
    """The r that alpha is divided by; None where there is none: of a LoKr whose matrices are whole."""
    of_rows = ("a", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
    return next((len(pieces[name]) for name in of_rows if name in pieces), None)


def fault_of(layer: str, pieces: Collection[str]) -> str | None:
    """What of a layer's matrices is there without the others that it needs; None where they belong together."""
    has, kind = set(pieces) - {"alpha", "diff", "diff_b", *TUCKER}, kind_of(pieces)
    if kind is None:
        wants = set()
    elif kind == "loha":
        wants = set(HADAMARD)
    elif kind == "lokr":
        wants = {name for n in ("lokr_w1", "lokr_w2") for name in ([n] if n in has else [f"{n}_a", f"{n}_b"])}
    else:
        wants = {"a", "b"}
    over = has - wants - ({"magnitude"} if wants else set()) - ({"bias"} if "a" in wants else set())
    tucker = set(pieces) & {"hada_t1", "hada_t2"}
    kernels = len(tucker) != 1 and not {"lokr_t2", "lokr_w2"} <= set(pieces)
    if wants <= has and not over and kernels:
        return None
    return f"{layer}: {' and '.join(sorted(has))} alone"


def fault_in(key: str, tensor: Tensor) -> str | None:
    """Why a tensor of that name is of no use, whatever the model; None where it may be."""
    if not torch.isfinite(tensor).all():
        return "has numbers that are nan or infinite"
    layer, piece = parsed(key)
    if layer is None:
        return None
    if not tensor.numel():
        return "is empty"
    if piece in _MATRICES and tensor.ndim < 2:
        return "is no matrix"
    if piece != "alpha" and not tensor.is_floating_point():
        return f"holds {str(tensor.dtype).removeprefix('torch.')}, whose scale is not said"
    return None


def other_kind(keys: Collection[str]) -> str | None:
    """The name of a kind that is not read, of which such tensors are."""
    return next((name for name, signs in _OTHER_KINDS.items() if any(s in key for key in keys for s in signs)), None)
