"""What processes that share a pack give each other before it is trained on."""

from __future__ import annotations

from dataclasses import replace

import torch

from ....packing import Packed, spans
from ....sequence import SequenceGroup
from .conditions import traded
from .pack import DitPack


def traded_pack(sequence: SequenceGroup, pack: DitPack) -> DitPack:
    """From the samples that each process of the group made, the clean tokens and the text of this one's piece."""
    words = [] if pack.text_layout is None else pack.text_layout.lengths
    whole = pack.layout.whole.lengths
    tokens = pack.clean if pack.control is None else torch.cat([pack.clean, pack.control], dim=-1)
    tokens, text, words = sequence.redistribute(whole, tokens, pack.text, words)
    clean, control = (tokens, None) if pack.control is None else tokens.chunk(2, dim=-1)
    if pack.conditions is not None:
        pack = replace(pack, conditions=traded(sequence, whole, pack.conditions))
    here = spans(whole, sequence.size)[sequence.rank]
    text_layout = replace(Packed.of_lengths(words[here.first : here.last]), whole=Packed.of_lengths(words))
    return replace(pack, clean=clean, control=control, text=text, text_layout=text_layout.to(text.device))
