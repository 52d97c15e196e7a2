"""Exponential moving average of a model's trainable parameters, in fp32, sharded as they are."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .parallel.pieces import Piece, PieceReader
from .parallel.strategy import Strategy


class EMA:
    """``shadow = d * shadow + (1 - d) * value`` for every piece after every optimizer step.

    With ``warmup`` the decay of update n (from 0) is ``min(decay, (1 + n) / (10 + n))``, so that the initial weights
    are forgotten early. ``shadow``: {parameter's name: fp32 tensor}, the elements that this process holds of it.
    """

    def __init__(self, pieces: Iterable[Piece], decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay={decay} must be at least 0 and below 1")
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.shadow = {p.name: p.value.detach().float().clone() for p in _trainable(pieces)}

    @torch.no_grad()
    def update(self, pieces: Iterable[Piece]) -> None:
        """Takes in the parameters as they are now."""
        ramp = (1 + self.updates) / (10 + self.updates) if self.warmup else self.decay
        values = self._matching(pieces)
        torch._foreach_lerp_(list(self.shadow.values()), values, 1 - min(self.decay, ramp))
        self.updates += 1

    @contextmanager
    def swapped(self, strategy: Strategy) -> Iterator[None]:
        """Inside, the model computes with the average; afterwards with its own weights again, bit for bit."""
        values = self._matching(strategy.pieces())
        raw = [value.clone() for value in values]
        try:
            self._write(strategy, values, list(self.shadow.values()))
            yield
        finally:
            self._write(strategy, values, raw)

    @torch.no_grad()
    def _write(self, strategy: Strategy, values: list[Tensor], new: list[Tensor]) -> None:
        torch._foreach_copy_(values, new)
        strategy.push()

    def tensors(self, pieces: Iterable[Piece]) -> dict[str, Tensor]:
        """What ``ema.safetensors`` holds of this process: the average under the parameters' names."""
        mine = (p for p in _trainable(pieces) if p.owner and p.value.numel())
        return {p.key(): p.store(self.shadow[p.name]) for p in mine}

    @torch.no_grad()
    def load(self, pieces: Iterable[Piece], reader: PieceReader, updates: int) -> None:
        """Restores what :meth:`tensors` gave, whatever strategy wrote it."""
        for piece in _trainable(pieces):
            shadow = self.shadow[piece.name]
            data = reader.read(piece.name, piece.start, shadow.numel(), torch.Size(piece.shape).numel())
            shadow.copy_(data.reshape(shadow.shape))
        self.updates = updates

    def _matching(self, pieces: Iterable[Piece]) -> list[Tensor]:
        """The pieces' values in the shadow's order."""
        values = {p.name: p.value for p in _trainable(pieces)}
        for name in self.shadow.keys() | values.keys():
            have, want = values.get(name), self.shadow.get(name)
            if have is None or want is None or have.shape != want.shape:
                have, want = (None if x is None else tuple(x.shape) for x in (have, want))
                raise ValueError(f"the model does not fit this EMA at {name}: {have} instead of {want}")
        return [values[name] for name in self.shadow]


def _trainable(pieces: Iterable[Piece]) -> Iterator[Piece]:
    return (p for p in pieces if p.trainable)
