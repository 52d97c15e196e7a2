"""What a checkpoint holds of the weights, their average and the optimiser: each process's pieces of them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...errors import UserError
from ..ema import EMA
from ..origin import Base
from ..parallel.pieces import (
    Piece,
    PieceReader,
    load_moments,
    load_values,
    model_tensors,
    optimizer_tensors,
    saved_state,
)
from ..parallel.strategy import Strategy
from .records import State


def held_tensors(strategy: Strategy, ema: EMA, trained_only: bool = False) -> dict[str, dict[str, Tensor]]:
    """{file: {name: tensor}} of this process: copies, which training does not change. trained_only: of the weights
    those alone that training changes."""
    pieces = strategy.pieces()
    return {
        "model": model_tensors(_kept(pieces, trained_only)),
        "ema": ema.tensors(pieces),
        "optimizer": optimizer_tensors(pieces),
    }


def load_tensors(checkpoint: Path, strategy: Strategy, ema: EMA, updates: int, trained_only: bool = False) -> None:
    """Overwrites them with a checkpoint's, whatever strategy and number of processes wrote it.

    updates: how many the average had taken in. trained_only: as in `held_tensors`.
    """
    pieces = strategy.pieces()
    load_values(_kept(pieces, trained_only), PieceReader(checkpoint, "model"))
    strategy.push()
    ema.load(pieces, PieceReader(checkpoint, "ema"), updates)
    moments = PieceReader(checkpoint, "optimizer")
    strategy.make_state(*saved_state(moments))
    load_moments(strategy.pieces(), moments)


def check_base(base: Base | None, state: State, folder: Path) -> None:
    """Raises UserError where a checkpoint does not belong to the weights that stay what they are."""
    before = state.get("base")
    if (None if before is None else before.get("fingerprint")) == (None if base is None else base.fingerprint):
        return
    words = "that it holds whole", f"of the base {before and before.get('where')}"
    now = "a model that is trained whole" if base is None else f"one over {base.where}, which has other weights"
    raise UserError(
        f"{folder} is of a model {words[before is not None]}, and this is {now}: give the run the model that it began "
        "with, or start a new run.dir"
    )


def _kept(pieces: list[Piece], trained_only: bool) -> list[Piece]:
    return [p for p in pieces if p.trainable] if trained_only else pieces
