"""What a stage is to the trainer: the model, its data, its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..config.schema import TrainingConfig
from ..data.clips import ClipSource
from ..data.plan.plan import Draw
from ..errors import UserError
from ..evaluation.sheet import Row
from ..limits import check_arguments
from ..models.building import check_memory
from .optim import Part


class Task(Protocol):
    """A stage: what is trained, on what, with which loss."""

    model: nn.Module
    tokens: np.ndarray  # of each sample, for the plan
    costs: np.ndarray  # of each sample, in any unit: what balances packs
    sources: tuple[str, ...]  # names of the manifests or caches, also of those that no sample is left of
    source_of: np.ndarray  # the source of each sample
    is_image: np.ndarray  # of each sample: one frame
    clips: ClipSource | None  # what reads files, if anything does
    apart: tuple[Part, ...]  # sub-modules of the model that learn beside the rest
    ragged: bool  # a pack may take several calls of the model, as many as it has shapes
    partial: bool  # some tokens have no loss: packs then say how many have, in `counted` and `counted_in_all`
    product: str  # name of the folder in run.dir that the finished model goes to

    def summary(self) -> str:
        """What it trains on, and what was left out for which reason; shown at the start."""

    def identity(self) -> dict[str, Any]:
        """Which data these are, to be kept with the run: see `data.identity`."""

    def make_pack(self, draws: Sequence[Draw]) -> Any:
        """The inputs of a pack; runs in loader processes. Has `.to(device)` and `.tokens`, a list a sample."""

    def prepare(self, pack: Any) -> Any:
        """On the device: what frozen encoders make of a pack, before `loss`."""

    def flops(self, pack: Any) -> float:
        """Of the model's forward pass over the samples that this process made of the pack, from their real sizes."""

    def loss(self, model: nn.Module, pack: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each sample [N] at a step (from 0), and parts of it to log, [N] each."""

    def sample(self, model: nn.Module, rank: int, world: int) -> dict[int, Row]:
        """What the model makes now, to look at: rows of a sheet, by their numbers in it. Called on every process, each
        of which makes its share and calls the model equally often (sharded models compute together)."""

    def held_out(self) -> HeldOut | None:
        """What measures the model on held-out data; None where the configuration asks for none."""

    def new_model(self) -> nn.Module:
        """Another model as `model` was at first."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes the finished model (averaged weights) in diffusers' format; called on the main process."""


class HeldOut(Protocol):
    """Held-out data, and what is measured on them. The same numbers whatever the number of processes is."""

    def summary(self) -> str:
        """What it measures on, and what was left out for which reason; shown at the start."""

    def higher_is_better(self, figure: str) -> bool:
        """Of a figure of `record`. Raises UserError where there is none of that name."""

    def begin(self, rank: int, world: int) -> None:
        """Before the first step, on every process: what need be made once. Raises UserError for data of no use."""

    def measure(self, model: nn.Module, rank: int, world: int) -> Tensor:
        """Sums over this process's share, float64 of one shape on every process; all call the model equally often."""

    def record(self, sums: Tensor) -> dict[str, Any]:
        """The figures, by name, of the sums over all processes; on the CPU."""

    def score(self, model: nn.Module, rank: int, world: int) -> dict[str, dict[str, Any]]:
        """Scores of what the model makes: {name: {"value": ..., "low": ..., ...}}, on every process."""


MakeTask = Callable[[TrainingConfig, torch.device], Task]


def shares(count: int, rank: int, world: int) -> list[tuple[int, bool]]:
    """This process's run of numbers of `count`, as many as the others'; False where it only repeats the last."""
    each = -(-count // world)
    return [(min(i, count - 1), i < count) for i in range(rank * each, (rank + 1) * each)]


def build_model(cls: type, arguments: dict, section: str):
    """`cls(**arguments)`; a wrong name or value becomes a UserError that names the section."""
    check_arguments(cls.__init__, arguments, section)
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    try:
        if issubclass(cls, nn.Module):
            check_memory(cls, arguments, section)
        return cls(**arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}: {error}") from None
