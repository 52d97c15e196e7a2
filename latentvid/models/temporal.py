"""Temporal blocks between the blocks of an image model, which make it one of video: `inflated` attention.

After the blocks 0, k, 2 k and so on, k being the model's `temporal_every`, one is inserted that joins each position's
frames (Make-A-Video, Singer et al. 2022; Align your Latents, Blattmann et al. 2023; AnimateDiff, Guo et al. 2023). As
all blocks do they begin as the identity, so that at first each frame is what the image model makes of it.

Axes: T tokens in a pack, R latent frames, D model width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .attention_context import AttentionContext
from .layers import Block
from .text_context import BlockText


class TemporalBlock(Block):
    """Samples of one latent frame pass it unchanged: of pictures the model makes what the image model does.

    It is computed for them too: in every pass all weights take part, as DDP asks of gradients, and ZeRO-3 of processes
    that gather weights together.
    """

    def forward(self, x: Tensor, condition: Tensor, text: Tensor | BlockText, context: AttentionContext) -> Tensor:
        y = super().forward(x, condition, text, context)
        return y if context.moving is None else torch.where(context.moving, y, x)


def temporal_count(attention: str, depth: int, every: int) -> int:
    """How many temporal blocks a model of so many other blocks has."""
    return len(range(0, depth, every)) if attention == "inflated" else 0


def in_order(blocks: Iterable[nn.Module], temporal: Sequence[nn.Module], every: int) -> list[nn.Module]:
    """The blocks of a pass, each temporal one after the block that it is inserted after."""
    left, found = iter(temporal), []
    for number, block in enumerate(blocks):
        found += [block] if number % every or not len(temporal) else [block, next(left)]
    return found
