"""What text encoders give: states of several prompts one after another.

Axes: N prompts, S text tokens of all of them, Dt width of the text; S' D' of a second text, Dp of a pooled state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class PackedText:
    """states [S,Dt] of the tokens that the transformer reads, `lengths` of each prompt.

    pooled: [N,Dp], one state a prompt. second: [S',D'], tokens of a second text, `second_lengths` of each prompt, 0
    among them. None where the model has no such encoder.
    """

    states: Tensor
    lengths: list[int]
    pooled: Tensor | None = None
    second: Tensor | None = None
    second_lengths: list[int] | None = None

    def split(self) -> tuple[Tensor, ...]:
        """One [tokens,Dt] a prompt."""
        return self.states.split(self.lengths)

    def float(self) -> PackedText:
        """The same in fp32."""
        pooled, second = (None if v is None else v.float() for v in (self.pooled, self.second))
        return replace(self, states=self.states.float(), pooled=pooled, second=second)

    def each(self) -> list[PackedText]:
        """Every prompt alone."""
        pooled = [None] * len(self.lengths) if self.pooled is None else self.pooled.split(1)
        if self.second is None:
            second = [(None, None)] * len(self.lengths)
        else:
            second = [(part, [len(part)]) for part in self.second.split(self.second_lengths)]
        parts = zip(self.split(), pooled, second, strict=True)
        return [PackedText(states, [len(states)], one, *two) for states, one, two in parts]


@dataclass(frozen=True)
class Fit:
    """How a prompt suits the encoder. tokens: how many, special ones included. unknown: its characters that the encoder
    has no token for, white space aside; share: of all its characters. Prompts that differ in these alone have equal
    states.
    """

    tokens: int
    unknown: str
    share: float
