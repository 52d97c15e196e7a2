"""Control branches of a pipeline: their signals in a pack of requests, and which of them act at a noise level.

Axes: T tokens of a pack, P token features, N samples, R latent frames, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models.control import Control, ControlBranch
from ..models.open.backbone import sample_level
from ..packing import Packed, Patch, patchify
from .sampling import Batch, Request

if TYPE_CHECKING:
    from .latent_video import LatentVideoPipeline


@dataclass(frozen=True, eq=False)
class Signal:
    """Of one role in a pack: clean latent patches [T,P], and of which samples there are any, bool [N] on the host."""

    tokens: Tensor
    has: Tensor


def branches_of(network: nn.Module) -> Sequence[ControlBranch]:
    return getattr(network, "controls", ())


def signals_of(requests: Sequence[Request], pipeline: LatentVideoPipeline, batch: Batch) -> dict[str, Signal]:
    """By role, of those that control branches read. Raises UserError where a branch has none to read, and where a
    signal does not have the size of its clip."""
    wanted = dict.fromkeys(
        branch.reads.role for network in pipeline.experts for branch in branches_of(network) if branch.reads.scale
    )
    for role in wanted:
        if not any(request.references.get(role) for request in requests):
            raise UserError(
                f"a ControlNet reads a signal in the role {role}: give --reference {role}=FILE or --signal {role}=FILE "
                f"(in Python: references={{{role!r}: clip}})"
            )
    return {role: _signal(role, requests, batch.layout, pipeline.transformer.patch, batch.z) for role in wanted}


def _signal(role: str, requests: Sequence[Request], layout: Packed, patch: Patch, like: Tensor) -> Signal:
    parts, has = [], []
    for request, length, shape in zip(requests, layout.lengths, layout.shapes, strict=True):
        latents = request.references.get(role, ())
        has.append(bool(latents))
        rows = torch.zeros(length, like.shape[1])
        if latents:
            if len(latents) > 1 or tuple(latents[0].shape[1:]) != tuple(request.grid):
                raise UserError(
                    f"reference {role}: a ControlNet reads one clip of the size and length of what is made: give that"
                )
            tokens, (grid,) = patchify([latents[0].float().cpu()], patch)
            assert grid == shape.grid
            rows[: len(tokens)] = tokens
        parts.append(rows)
    return Signal(torch.cat(parts).to(like.device), torch.tensor(has))


def control_at(network: nn.Module, batch: Batch, t: Tensor) -> Control | None:
    """What the network's branches read at noise levels t [R]; None: none of them acts."""
    branches, tokens, scales = [], [], []
    for number, branch in enumerate(branches_of(network)):
        reads = branch.reads
        if not reads.scale:
            continue
        signal = batch.signals[reads.role]
        acts = signal.has & _within(batch, t, reads.start, reads.end)
        if bool(acts.any()):
            branches.append(number)
            tokens.append(signal.tokens)
            all_alike = reads.scale == 1.0 and bool(acts.all())
            scale = None if all_alike else (reads.scale * acts.float()).to(t.device, non_blocking=True)
            scales.append(scale)
    return Control(tuple(branches), tuple(tokens), tuple(scales)) if branches else None


def _within(batch: Batch, t: Tensor, start: float, end: float) -> Tensor:
    """Of which samples, bool [N] on the host, the steps are between these shares of all, by their noise levels."""
    steps, layout, levels = len(batch.levels) - 1, batch.host_layout, batch.host_levels
    first, last = math.ceil(start * steps - 1e-6), math.floor(end * steps + 1e-6)
    here = sample_level(batch.on_host(t), layout)  # [N]
    acts = torch.ones_like(here, dtype=torch.bool)
    if first > 0:
        acts &= here <= sample_level(levels[first], layout) + 1e-6
    if last < steps:
        acts &= here > sample_level(levels[last], layout) + 1e-6
    return acts
