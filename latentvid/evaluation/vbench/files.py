"""Files of VBench's networks, as their authors publish them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from ...errors import UserError, brief

FOLDER = "vbench"  # in the folder of weights


def network_file(weights: Path | None, name: str, source: str) -> Path:
    """WEIGHTS/vbench/NAME. Raises UserError where it is not there. source: who has it."""
    if weights is None or not (weights / FOLDER / name).is_file():
        raise UserError(f"there is no WEIGHTS/{FOLDER}/{name}: {source}; put it there, and give --weights WEIGHTS")
    return weights / FOLDER / name


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors by name, of a file that torch saved; those under "model" or "state_dict" where it has such a part."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{file} is no file of weights: {brief(error)}") from error
    for part in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(part), dict):
            found = found[part]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{file} holds no weights by name: fetch it again")
    return found


def fill(network: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    """Raises UserError where the weights are another network's."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{file} holds another network's weights: {brief(error)}") from error
