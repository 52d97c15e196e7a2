"""What a VideoDiT makes of its prompts, so that the steps of sampling do not compute it again.

Axes: N segments (prompts), S text tokens, Dt width of the text encoder, D model width, A heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(eq=False)
class BlockText:
    """The text of one block's cross-attention: what it projects [S,D], and its normed keys and its values [S,A,K],
    which the first pass leaves here."""

    states: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None

    def fill(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys.detach(), values.detach().contiguous()


class TextContext:
    """Text states [S,Dt] that many forward passes of one model read: give it in their place.

        context = TextContext(text)
        for t in levels:
            prediction = model(z, t, context, layout, text_layout)

    None of what the model makes of text depends on tokens or noise levels. The first pass leaves it here, in its own
    precision: the projected states, their mean a prompt, and the keys and values of each block. It is done inside the
    pass, where sharded or offloaded weights are at hand. Gradients do not reach what is kept.
    """

    def __init__(self, states: Tensor) -> None:
        self.states = states
        self.pooled: Tensor | None = None  # [N,D]
        self.blocks: tuple[BlockText, ...] = ()

    def fill(self, pooled: Tensor, states: Tensor, depth: int) -> None:
        """Of the prompts [N,D] and of their tokens [S,D], for a model of so many blocks."""
        self.pooled, states = pooled.detach(), states.detach()
        self.blocks = tuple(BlockText(states) for _ in range(depth))

    def check(self, depth: int) -> None:
        """Raises ValueError where a model of so many blocks did not make what is kept."""
        if depth != len(self.blocks):
            raise ValueError(
                f"a text context of {len(self.blocks)} blocks for a model of {depth}: give each model its own"
            )
