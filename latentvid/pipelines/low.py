"""Smaller clips that requests are shown by further input channels (`model.condition_channels: latents`).

Axes: T tokens of a pack, C latent channels, p q of a patch; latents are [C,f,h,w].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.scheduler import LatentVideoScheduler
from ..errors import UserError
from ..models.conditions import Conditions, low_channels
from ..packing import Patch, patchify
from ..references import Role, low_in
from ..rng import generator
from ..words import counted
from .sampling import Batch, Request

if TYPE_CHECKING:
    from .latent_video import LatentVideoPipeline


def with_low(
    requests: Sequence[Request], pipeline: LatentVideoPipeline, batch: Batch, noise: float | None
) -> Conditions:
    """`batch.given` with what the model sees of smaller clips; 0 of a request without. noise: as
    `Sampling.reference_noise`. Raises UserError where the model cannot see them."""
    name = low_in(pipeline.roles)
    shown = [() if name is None else request.references.get(name, ()) for request in requests]
    if pipeline.channel_kind != "latents":
        if any(shown):
            raise UserError(
                f"reference {name} is shown by channels, which this transformer does not have: load the one that was "
                "trained with it (model.condition_channels=latents)"
            )
        return batch.given
    if batch.given.channels is not None:
        raise UserError("channels: those of this model are made of a reference: give that in `references`")
    role = None if name is None else pipeline.roles[name]
    rows = []
    for request, latents, length in zip(requests, shown, batch.layout.lengths, strict=True):
        if len(latents) > 1:
            raise UserError(f"reference {name}: {counted(len(latents), 'clip')} for one that is made: give one")
        seen = torch.zeros(1 + pipeline.transformer.latent_channels, *request.grid)
        if latents:
            level = _level(role, noise)
            low = _noised(latents[0].float().cpu(), level, request.seed, pipeline.scheduler)
            seen = low_channels(low, torch.tensor(level), request.grid)
        rows.append(_in_tokens(seen, pipeline.transformer.patch, length))
    return replace(batch.given, channels=torch.cat(rows).to(batch.z.device))


def _level(role: Role, noise: float | None) -> float:
    if role.noise is None:
        return 0.0
    return role.noise[0] if noise is None else noise


def _noised(latent: Tensor, level: float, seed: int, scheduler: LatentVideoScheduler) -> Tensor:
    if not level:
        return latent
    fresh = torch.randn(latent.shape, generator=generator(seed, 0, "channels-noise"))
    return scheduler.mix(latent, fresh, torch.tensor(level))


def _in_tokens(channels: Tensor, patch: Patch, length: int) -> Tensor:
    """[C',f,h,w] -> [length, C' p q], 0 of references' tokens."""
    tokens, _ = patchify([channels], patch)
    return F.pad(tokens, (0, 0, 0, length - len(tokens)))
