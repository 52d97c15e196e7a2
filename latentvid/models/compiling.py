"""`torch.compile` of a model's blocks, as training and sampling use it: one function for all blocks and packs."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.experimental import _config as shapes

from .layers import Block
from .transformer import VideoDiT

# Graphs of a block at most. There is one for each way in which a pass goes: with gradients or without, text read once
# or in each pass, of one latent frame or more, the two kinds of factorised attention, with cached frames or none.
GRAPHS = 64
KEPT = 0.8  # share of what the compiler would keep for the backward pass; it computes again what is cheapest


def compile_blocks(model: VideoDiT, **options: Any) -> None:
    """Compiles the model's blocks, when they first run. options: of `torch.compile`.

    Sets what torch has no option of a call for, for the whole process.
    """
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    torch._functorch.config.activation_memory_budget = KEPT
    shapes.use_duck_shape = False  # sizes that are equal by chance in the first pack would need to stay equal
    compute = torch.compile(Block.compute, fullgraph=True, dynamic=True, **options)
    for block in model.blocks:
        block.compiled = compute
