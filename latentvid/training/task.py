"""What a stage is to the trainer: the model, its data, its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..config.schema import TrainingConfig
from ..data.clips import ClipSource
from ..data.manifest.columns import Lookup
from ..data.plan.plan import Draw
from ..errors import UserError
from ..evaluation.sheet import Row
from ..limits import check_arguments
from ..models.building import check_memory
from ..models.flops import GridFlops
from ..packing import Grid, Reference, Shape
from .optim import Part
from .origin import Base, Origin


class Pack(Protocol):
    """What a stage makes of a pack's draws, in loader processes. `pin_memory()` is called on it where there is CUDA."""

    tokens: Sequence[int]  # of each sample
    counted: Sequence[int]  # of each sample: tokens that have a loss; asked for only where the task is `partial`
    counted_in_all: int  # their sum over the whole pack, of which this may be one process's piece
    replaced: int  # clips that were read instead of others

    def to(self, device: torch.device) -> Pack: ...


class Task(Protocol):
    """A stage: what is trained, on what, with which loss."""

    config: TrainingConfig
    product: str  # name of the folder in run.dir that the finished model goes to

    # --- the model ---

    model: nn.Module
    blocks: Sequence[nn.Module]  # of the model, all alike: compiled, gathered and recomputed one by one; may be none
    width: int  # of the blocks
    recomputes: bool  # the model can recompute activations: it has `enable_gradient_checkpointing`
    apart: tuple[Part, ...]  # sub-modules of the model that learn beside the rest
    frozen: tuple[nn.Module, ...]  # networks that are used and not trained
    base: Base | None  # parameters that take no gradient come from there, not from checkpoints; None: from those too
    ragged: bool  # a pack may take several calls of the model, as many as it has shapes

    def new_model(self) -> nn.Module:
        """Another model as `model` was at first."""

    # --- the data ---

    grids: Lookup[Grid]  # in tokens, of each sample
    shapes: Lookup[Shape]  # the same with the references that a sample is shown at most
    tokens: np.ndarray  # of each sample, for the plan
    costs: np.ndarray  # of each sample, in any unit: what balances packs
    sources: tuple[str, ...]  # names of the manifests or caches, also of those that no sample is left of
    source_of: np.ndarray  # the source of each sample
    source_weights: tuple[float, ...]  # share of the tokens of each source; (): every sample comes once an epoch
    is_image: np.ndarray  # of each sample: one frame
    clips: ClipSource | None  # what reads files, if anything does
    partial: bool  # some tokens have no loss
    fps: float  # frames a second of what `sample` makes
    trained: list[dict[str, Any]] | None  # sizes, lengths and rates of the data, for who generates; None: not noted

    # --- where it begins ---

    origin: Origin | None  # the weights that a run from the start begins with; None: new ones, or the run goes on

    def follow(self, before: Path | None) -> None:
        """Called once, before the first step: the checkpoint at the end of the stage before this one, None of the first
        stage. Raises UserError."""

    def summary(self) -> str:
        """What it trains on, and what was left out for which reason; shown at the start."""

    def identity(self, first: Sequence[int] | None = None) -> dict[str, Any]:
        """Which data these are, to be kept with the run: see `data.manifest.identity`. first: only so many of each
        source."""

    def pixels(self, grid: Grid) -> Grid:
        """Frames, height and width of the clips that have such a token grid."""

    def make_pack(self, draws: Sequence[Draw]) -> Pack:
        """The inputs of a pack; runs in loader processes."""

    def blank_pack(self, grids: Sequence[Grid], references: Sequence[Sequence[Reference]] = ()) -> Pack:
        """A pack of such samples, ready for `loss`, to count its memory: its numbers do not matter. references: of each
        sample; empty: none has any."""

    # --- a step ---

    def prepare(self, pack: Pack) -> Pack:
        """On the device: what frozen encoders make of a pack, before `loss`."""

    def loss(self, model: nn.Module, pack: Pack, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each sample [N] at a step (from 0), and parts of it to log, [N] each."""

    def flops(self, pack: Pack) -> float:
        """Of the model's forward pass over the samples that this process made of the pack, from their real sizes."""

    def grid_flops(self, grid: Grid, references: Sequence[Reference] = ()) -> GridFlops:
        """Of the forward pass over one sample with these references."""

    # --- what it shows and leaves ---

    def sample(self, model: nn.Module, rank: int, world: int) -> dict[int, Row]:
        """What the model makes now, to look at: rows of a sheet, by their numbers in it. Called on every process, each
        of which makes its share and calls the model equally often (sharded models compute together)."""

    def held_out(self) -> HeldOut | None:
        """What measures the model on held-out data; None where the configuration asks for none."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes the finished model (averaged weights) in diffusers' format; called on the main process."""


class HeldOut(Protocol):
    """Held-out data, and what is measured on them. The same numbers whatever the number of processes is."""

    def summary(self) -> str:
        """What it measures on, and what was left out for which reason; shown at the start."""

    def higher_is_better(self, figure: str) -> bool:
        """Whether more is better of a figure of `record`. Raises UserError for an unknown name."""

    def begin(self, rank: int, world: int) -> None:
        """Before the first step, on every process: makes what is needed once. Raises UserError for data of no use."""

    def measure(self, model: nn.Module, rank: int, world: int) -> Tensor:
        """Sums over this process's share, float64 of one shape on every process; all call the model equally often."""

    def record(self, sums: Tensor) -> dict[str, Any]:
        """The figures, by name, of the sums over all processes; on the CPU."""

    def score(self, model: nn.Module, rank: int, world: int) -> dict[str, dict[str, Any]]:
        """Scores of what the model makes: {name: {"value": ..., "low": ..., ...}}, on every process."""


class MakeTask(Protocol):
    """A stage's task."""

    def __call__(self, config: TrainingConfig, device: torch.device, data: bool = True) -> Task:
        """`data=False` leaves the data closed: enough to export."""

    def settled(self, config: TrainingConfig) -> TrainingConfig:
        """The configuration with what it leaves to other files, such as a published model's; the same on every process,
        and where it is settled already. Called once the processes know each other."""

    def prepare_run(
        self, config: TrainingConfig, device: torch.device, may_stop: Callable[[], AbstractContextManager]
    ) -> None:
        """Makes in `run.dir` what a run needs made before its first step; called on every process, and each time that
        the run starts. What was begun is gone on with: inside `may_stop()` to be asked to stop ends it at once. Raises
        UserError."""


class Stage(NamedTuple):
    config: type[TrainingConfig]
    task: MakeTask


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
