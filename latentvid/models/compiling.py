"""`torch.compile` of a model's blocks, as training and sampling use it: one function for all blocks and packs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx.experimental import _config as shapes

from .block_pass import BlockPass
from .control import runnable_blocks

# Graphs of a block at most. There is one for each way in which a pass goes: with gradients or without, text read once
# or in each pass, of one latent frame or more, the two kinds of factorised attention, with cached frames or none.
GRAPHS = 64
KEPT = 0.8  # share of what the compiler would keep for the backward pass; it computes again what is cheapest


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compiles the blocks of a backbone, when they first run: one function for all that compute alike.

    options: of `torch.compile`. Sets what torch has no option of a call for, for the whole process.
    """
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    torch._functorch.config.activation_memory_budget = KEPT
    shapes.use_duck_shape = False  # sizes that are equal by chance in the first pack would need to stay equal
    made: dict[Callable[..., Any], Callable[..., Any]] = {}
    for block in runnable_blocks(model):
        holder = _holder(block)
        plain = getattr(holder.compute, "__func__", holder.compute)  # of the block and its arguments
        if plain not in made:
            made[plain] = torch.compile(plain, fullgraph=True, dynamic=True, **options)
        holder.compiled = made[plain]


def uncompile_blocks(model: nn.Module) -> None:
    """Undoes `compile_blocks`."""
    for block in runnable_blocks(model):
        _holder(block).compiled = None


def _holder(block: nn.Module) -> Any:
    """What has the block's `compute`, and runs `compiled` in its place."""
    return block.forward if isinstance(block.forward, BlockPass) else block
