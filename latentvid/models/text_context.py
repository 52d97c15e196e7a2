"""What a VideoDiT makes of its prompts, so that the steps of sampling do not compute it again.

Axes: N segments (prompts), S text tokens, Dt width of the text encoder, D model width, A heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

KeysValues = tuple[Tensor, Tensor]  # [S,A,K] each


class MakesKeysValues(Protocol):
    def keys_values(self, x: Tensor) -> KeysValues: ...


@dataclass(eq=False)
class BlockText:
    """The text of one block's cross-attention: its states [S,D], and its keys and values once a pass has made them; of
    copies of the block too, which have weights of their own."""

    states: Tensor
    made: dict[MakesKeysValues, KeysValues] = field(default_factory=dict)

    def keys_values(self, cross: MakesKeysValues) -> KeysValues:
        """As `cross` makes them, in the first pass; the same in later passes. Gradients do not reach them."""
        if cross not in self.made:
            keys, values = cross.keys_values(self.states)
            self.made[cross] = keys.detach(), values.detach().contiguous()
        return self.made[cross]


class TextContext:
    """Text states [S,Dt] that many forward passes of one model read: give it in their place.

        context = TextContext(text)
        for t in levels:
            prediction = model(z, t, context, layout, text_layout)

    What the model makes of text depends neither on tokens nor on noise levels. The first pass leaves it here, in its
    own precision: the projected states, their mean for each prompt, and the keys and values of each block. It is made
    inside the pass, where sharded or offloaded weights are at hand. Gradients do not reach what is kept.
    """

    def __init__(self, states: Tensor) -> None:
        self.states = states
        self.pooled: Tensor | None = None  # [N,D]
        self.blocks: tuple[BlockText, ...] = ()

    def fill(self, pooled: Tensor, states: Tensor, depth: int) -> None:
        """Keeps what a model of `depth` blocks made of the prompts [N,D] and of their tokens [S,D]."""
        self.pooled, states = pooled.detach(), states.detach()
        self.blocks = tuple(BlockText(states) for _ in range(depth))

    def check(self, depth: int) -> None:
        """Raises ValueError unless a model of `depth` blocks made what is kept."""
        if depth != len(self.blocks):
            raise ValueError(
                f"a text context of {len(self.blocks)} blocks for a model of {depth}: give each model its own"
            )
