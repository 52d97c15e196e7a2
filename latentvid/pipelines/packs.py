"""How many samples go together into a pack of the sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..packing import Grid, token_grid
from .latent_video import LatentVideoPipeline


def tokens_of(pipeline: LatentVideoPipeline, grid: Grid) -> int:
    """Tokens of a sample whose latent is (f,h,w)."""
    return math.prod(token_grid(grid, pipeline.transformer.patch))


def packs(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Numbers of the samples of these tokens, in order, cut into packs of at most `budget` (or one sample)."""
    found: list[list[int]] = []
    room = 0
    for i, n in enumerate(tokens):
        if not found or n > room:
            found.append([])
            room = budget
        found[-1].append(i)
        room -= n
    return found
