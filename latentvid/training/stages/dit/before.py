"""The model that a run begins with, beside the one that is trained: what it predicts is what is learned, or compared
with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ....config.schema import DitConfig
from ....models.adapters.lora import raw_of
from ...compute import compute_type


class Before:
    """The model as it was at first, which is never trained: a `copy` of it, or where that is None the `model` itself
    with its adapters off."""

    def __init__(self, model: nn.Module, copy: nn.Module | None, config: DitConfig, device: torch.device) -> None:
        self.model, self.copy, self.config, self.device = model, copy, config, device

    @contextmanager
    def instead_of(self, called: Callable) -> Iterator[Callable]:
        """Inside, what to call instead of `called`, which calls the model as a strategy or a measurement does;
        nothing has gradients."""
        if self.config.run.dry_run:  # which counts memory, of what stands nowhere: the model costs what a copy does
            with torch.no_grad():
                yield called
        elif self.copy is None:
            with torch.no_grad(), adapters_off(self.model):
                yield called
        else:
            with torch.no_grad():
                yield self._call

    def _call(self, *args: Any, **kwargs: Any) -> Tensor:
        with compute_type(self.config, self.device):
            return self.copy(*args, **kwargs)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as if it had no adapter. What is trained stays so: peft's own switch freezes it."""
    layers = [layer for layer in raw_of(model).modules() if isinstance(layer, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off
