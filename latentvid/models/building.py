"""Whether a network can be built at all, found out before memory is taken for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from .budget import free_bytes


def parameters_of(cls: type[nn.Module], arguments: Mapping[str, Any]) -> int:
    """How many parameters `cls(**arguments)` would have; nothing is allocated, no random numbers are drawn."""
    with torch.device("meta"):
        return sum(p.numel() for p in cls(**arguments).parameters())


def shapes_of(cls: type[nn.Module], arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that `cls(**arguments)` would save; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in cls(**arguments).state_dict().items()}


def check_memory(cls: type[nn.Module], arguments: Mapping[str, Any], section: str) -> None:
    """Raises UserError where the fp32 weights of `cls(**arguments)` are more than this machine can hold; not where it
    is built without storage."""
    if torch.empty(0).is_meta:
        return
    count, free = parameters_of(cls, arguments), free_bytes(torch.device("cpu"))
    if 4 * count > free:
        raise UserError(
            f"{section}: a {cls.__name__} of these sizes has {count:,} parameters, {4 * count / 2**30:,.1f} GiB in "
            f"fp32, and {free / 2**30:,.1f} GiB are free here: make it smaller"
        )
