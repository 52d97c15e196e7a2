"""A pass of our own through a module of another library, instead of its `forward`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn


class BlockPass:
    """What stands instead of a module's `forward`: `compute`, a function of the module and its arguments.

    It is the instance's own, so hooks, wrappers and adapters find the module with its class, names and weights as ever.
    A copy of the module computes with the copy's weights. A pickle keeps the pass, and not what was compiled of it.

    compute: a function of a module file, which pickles by its name.
    compiled: what runs instead of `compute`.
    """

    compiled: Callable[..., Any] | None = None

    def __init__(self, module: nn.Module, compute: Callable[..., Any]) -> None:
        self.module, self.compute = module, compute

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return (self.compiled or self.compute)(self.module, *arguments, **named)

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockPass:
        other = BlockPass(copy.deepcopy(self.module, memo), self.compute)
        other.compiled = self.compiled
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "compute": self.compute}


def pass_of(module: nn.Module, compute: Callable[..., Any]) -> None:
    """From now on `module(...)` is `compute(module, ...)`."""
    module.forward = BlockPass(module, compute)
