"""What a checkpoint holds of the weights, their average and the optimiser: each process's pieces of them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..ema import EMA
from ..parallel.pieces import PieceReader, load_moments, load_values, model_tensors, optimizer_tensors, saved_state
from ..parallel.strategy import Strategy


def held_tensors(strategy: Strategy, ema: EMA) -> dict[str, dict[str, Tensor]]:
    """{file: {name: tensor}} of this process: copies, which training does not change."""
    pieces = strategy.pieces()
    return {"model": model_tensors(pieces), "ema": ema.tensors(pieces), "optimizer": optimizer_tensors(pieces)}


def load_tensors(checkpoint: Path, strategy: Strategy, ema: EMA, updates: int) -> None:
    """Overwrites them with a checkpoint's, whatever strategy and number of processes wrote it.

    updates: how many the average had taken in.
    """
    pieces = strategy.pieces()
    load_values(pieces, PieceReader(checkpoint, "model"))
    strategy.push()
    ema.load(pieces, PieceReader(checkpoint, "ema"), updates)
    moments = PieceReader(checkpoint, "optimizer")
    strategy.make_state(*saved_state(moments))
    load_moments(strategy.pieces(), moments)
