"""What a stage is to the trainer: the model, its data, its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..data.clips import ClipSource
from ..data.plan import Draw
from ..errors import UserError
from .config import TrainingConfig
from .optim import Part


class Task(Protocol):
    """A stage: what is trained, on what, with which loss."""

    model: nn.Module
    tokens: np.ndarray  # of each sample, for the plan
    costs: np.ndarray  # of each sample, in any unit: what balances packs
    source_of: np.ndarray  # the source (manifest or cache) of each sample
    is_image: np.ndarray  # of each sample: one frame
    clips: ClipSource | None  # what reads files, if anything does
    apart: tuple[Part, ...]  # sub-modules of the model that learn beside the rest
    ragged: bool  # a pack may take several calls of the model, as many as it has shapes
    product: str  # name of the folder in run.dir that the finished model goes to

    def summary(self) -> str:
        """What it trains on, and what was left out for which reason; shown at the start."""

    def make_pack(self, draws: Sequence[Draw]) -> Any:
        """The inputs of a pack; runs in loader processes. Has `.to(device)` and `.tokens`, a list a sample."""

    def prepare(self, pack: Any) -> Any:
        """On the device: what frozen encoders make of a pack, before `loss`."""

    def flops(self, pack: Any) -> float:
        """Of the model's forward pass over the samples that this process made of the pack, from their real sizes."""

    def loss(self, model: nn.Module, pack: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each sample [N] at a step (from 0), and parts of it to log, [N] each."""

    def sample(self, model: nn.Module, step: int, folder: Path, rank: int, world: int) -> None:
        """Writes what the model makes now, to look at; called with the averaged weights on every process, each of
        which makes its share and calls the model equally often (sharded models compute together)."""

    def new_model(self) -> nn.Module:
        """Another model as `model` was at first."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes the finished model (averaged weights) in diffusers' format; called on the main process."""


MakeTask = Callable[[TrainingConfig, torch.device], Task]


def shares(count: int, rank: int, world: int) -> list[tuple[int, bool]]:
    """This process's run of numbers of `count`, as many as the others'; False where it only repeats the last."""
    each = -(-count // world)
    return [(min(i, count - 1), i < count) for i in range(rank * each, (rank + 1) * each)]


def build_model(cls: type, arguments: dict, section: str):
    """`cls(**arguments)`; a wrong name or value becomes a UserError that names the section."""
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}: {error}") from None
