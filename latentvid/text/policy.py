"""How a published model's text encoders are read. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Of one text encoder: from prompts to what the transformer is given.

    part, tokenizer: folders of the repository.
    gives: what the states are to the transformer: its text, one pooled state a prompt, or a second text's tokens.
    tokens: most tokens of a prompt, special ones included and the template's cropped ones not. Longer prompts are an
        error, or where `cut` says so only their beginning is read.
    pad: "none": a prompt's own tokens, encoded masked; "zero": these, and zero states up to `tokens`; "encoded":
        padded to `tokens` before the encoder, which sees the padding, and all states are given; "seen": padded and
        encoded so, but only the states of the prompt's own tokens are given.
    side: where the published padding stands: at "left" a prompt's last token has the position `tokens` - 1.
    layer: which hidden state, counted from the end as -1, -2, ...; None: the last, after the final norm; "all": those
        of all layers and of the embedding, for the connectors.
    connectors: folder of a further small network (LTX-2's) that makes the states out of them.
    clean: what is done to a prompt first: nothing; white space at its ends is left out; or, as Wan does, broken
        characters and HTML are mended and white space is one blank.
    takes: the prompt, or only the texts in quotation marks in it, as they are put to ByT5: none, no tokens.
    empty: what is put instead of an empty prompt; None: it has no tokens.
    template: what the prompt is put into, `{}` in its place; crop: states at the front that are the template's and
        are left out.
    """

    part: str = "text_encoder"
    tokenizer: str = "tokenizer"
    gives: Literal["text", "pooled", "second"] = "text"
    tokens: int
    cut: bool = False
    pad: Literal["none", "zero", "encoded", "seen"] = "none"
    side: Literal["left", "right"] = "right"
    layer: int | Literal["all"] | None = None
    connectors: str | None = None
    clean: Literal["none", "strip", "mend"] = "none"
    takes: Literal["prompt", "quoted"] = "prompt"
    empty: str | None = ""
    template: str | None = None
    crop: int = 0
