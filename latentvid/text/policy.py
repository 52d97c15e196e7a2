"""How a published model's text encoders are read. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Of one text encoder: from prompts to what the transformer is given.

    part, tokenizer: folders of the repository.
    gives: what the states are to the transformer: its text, one pooled state a prompt, or a second text's tokens.
    tokens: most tokens of a prompt, special ones included; longer prompts are an error, or cut where that is asked for.
    pad: "none": a prompt's own tokens, encoded masked; "zero": these, and zero states up to `tokens`; "encoded":
        padded to `tokens` before the encoder, which sees the padding, and all states are given.
    layer: which hidden state, counted from the end as -1, -2, ...; None: the last, after the final norm.
    template: what the prompt is put into, `{}` in its place; crop: states at the front that are the template's and
        are left out.
    """

    part: str = "text_encoder"
    tokenizer: str = "tokenizer"
    gives: Literal["text", "pooled", "second"] = "text"
    tokens: int
    pad: Literal["none", "zero", "encoded"] = "none"
    layer: int | None = None
    template: str | None = None
    crop: int = 0
