"""Smaller clips that samples see by further input channels (`model.condition_channels: latents`).

Axes: T tokens, C latent channels, f h w of a latent, p q of a patch; clips are uint8 [F,H,W,3].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ....diffusion.scheduler import LatentVideoScheduler
from ....models.conditions import low_channels
from ....models.interchange import Vae
from ....packing import Patch, patch_size, patchify, token_grid
from .shown import shown_latents


@dataclass(frozen=True, eq=False)
class Low:
    """What a sample sees: a clip uint8 [F,H,W,3], or its latent [C,f,h,w]; and noise [C,f,h,w] of a level []."""

    clip: Tensor
    level: Tensor
    noise: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Low:
        return Low(change(self.clip), change(self.level), change(self.noise))


def latent_shape(channels: int, strides: tuple[int, int], shown: Tensor) -> tuple[int, ...]:
    """[C,f,h,w] of a clip uint8 [F,H,W,3], or of a latent. strides: the VAE's in time and in space."""
    if shown.dtype != torch.uint8:
        return tuple(shown.shape)
    (frames, height, width, _), (temporal, spatial) = shown.shape, strides
    return channels, 1 + (frames - 1) // temporal, height // spatial, width // spatial


def encoded(vae: Vae, low: Sequence[Low | None]) -> list[Low | None]:
    """With the latents of the clips."""
    latents = shown_latents(vae, [[] if one is None else [one.clip] for one in low], len(low))
    return [one if one is None else replace(one, clip=z[0]) for one, z in zip(low, latents, strict=True)]


def tokens_of_low(
    low: Sequence[Low | None],
    own: Sequence[Tensor],
    shown: Sequence[Sequence[Tensor]],
    patch: Patch,
    scheduler: LatentVideoScheduler,
    none: Tensor,
) -> Tensor:
    """`Conditions.channels` [T, (1 + C) p q] of samples whose latents [C,f,h,w] are `own`: 0 where one sees nothing,
    and of the references that are `shown` as tokens. none: [0, C p q]."""
    parts = [none.new_zeros(0, none.shape[1] + patch_size(patch))]
    for one, z, beside in zip(low, own, shown, strict=True):
        grid = tuple(z.shape[1:])
        if one is None:
            seen = z.new_zeros(1 + len(z), *grid)
        else:
            seen = low_channels(scheduler.mix(one.clip.float(), one.noise, one.level), one.level, grid)
        after = sum(math.prod(token_grid(tuple(each.shape[1:]), patch)) for each in beside)
        parts.append(F.pad(patchify([seen], patch)[0], (0, 0, 0, after)))
    return torch.cat(parts)
