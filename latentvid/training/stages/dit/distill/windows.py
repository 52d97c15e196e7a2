"""A pack cut in time: its clips some latent frames at a time, as a causal student makes them.

Axes: T tokens of a pack, R latent frames, N samples, S text tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from .....packing import Packed
from .....transfer import to_device
from ..pack import DitPack


@dataclass(frozen=True)
class Window:
    """The same latent frames, from `start` on, of those of a pack's samples that are so long.

    pack: of these, with the samples' text and rates. tokens: int64 [T'], their places in the whole pack. samples: int64
    [N'], the samples' numbers there. kept: their numbers in the window before, or, of the first one, in the pack.
    """

    start: int
    pack: DitPack
    tokens: Tensor
    samples: Tensor
    kept: list[int]


def windows(pack: DitPack, frames: int) -> Iterator[Window]:
    """The latent frames of a pack that is ready, so many of each sample at a time; the last ones may be fewer."""
    layout, words = pack.layout, pack.text_layout.lengths
    token, row, word = ([0, *accumulate(n)] for n in (layout.lengths, [f for f, _, _ in layout.grid], words))
    before = list(range(layout.segments))
    for start in range(0, max(f for f, _, _ in layout.grid), frames):
        samples = [i for i, (f, _, _) in enumerate(layout.grid) if f > start]
        grids = [(min(frames, f - start), h, w) for f, h, w in (layout.grid[i] for i in samples)]
        device = pack.noise.device
        first = [token[i] + start * h * w for i, (_, h, w) in zip(samples, grids, strict=True)]
        tokens = _runs(first, [f * h * w for f, h, w in grids], device)
        rows = _runs([row[i] + start for i in samples], [f for f, _, _ in grids], device)
        texts = _runs([word[i] for i in samples], [words[i] for i in samples], device)
        places = to_device(samples, device)
        part = replace(
            pack,
            noise=pack.noise.index_select(0, tokens),
            clean=pack.clean.index_select(0, tokens),
            timestep=pack.timestep.index_select(0, rows),
            layout=Packed.of(grids).to(device),
            rates=pack.rates.index_select(0, places),
            text=pack.text.index_select(0, texts),
            text_layout=Packed.of_lengths([words[i] for i in samples]).to(device),
            numbers=tuple(pack.numbers[i] for i in samples) if pack.numbers else (),
        )
        yield Window(start, part, tokens, places, [before.index(i) for i in samples])
        before = samples


def _runs(starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> Tensor:
    """The numbers start, start + 1, ... of each run, one run after another."""
    return torch.cat([torch.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)]).to(
        device, non_blocking=True
    )
