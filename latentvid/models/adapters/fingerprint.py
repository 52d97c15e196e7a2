"""Which weights a model has, told by a short text."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from .lora import raw_of

SAMPLED = 16_384  # numbers of each tensor that its fingerprint looks at


def named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Its parameters by the names that its layers have; without those of control branches."""
    return [pair for pair in raw_of(model).named_parameters() if not pair[0].startswith("controls.")]


def fingerprint(model: nn.Module, temporal: bool = True) -> str:
    """sha256 (hex) over names, types and shapes of the parameters, and some numbers of each, evenly spread: whoever
    trains a model changes them. temporal: whether temporal blocks (../temporal.py) are among them; without them it is
    that of the image model."""
    digest = hashlib.sha256()
    for name, parameter in sorted(named(model)):
        if not temporal and name.startswith("temporal."):
            continue
        flat = parameter.detach().flatten()
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        some = flat[:: max(1, len(flat) // SAMPLED)].contiguous().cpu()
        digest.update(some.view(torch.uint8).numpy())
    return digest.hexdigest()
