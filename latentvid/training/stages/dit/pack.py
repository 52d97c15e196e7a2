"""What the transformer trains on in one forward pass.

Axes: T tokens, P token features, R latent frames, S text tokens; videos are [F,H,W,3], latents [C,f,h,w].
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ....models.conditions import Conditions
from ....packing import Packed
from .low import Low


@dataclass(frozen=True)
class DitPack:
    """Everything random is drawn; what is missing is what the VAE and the text encoder make on the device.

    noise: [T,P]. timestep: [R]. layout: the samples' token grids, equal ones next to each other. rates: float32 [N],
    frames a second of each sample of the layout; 0 of a single frame, where no rate is known, and where it is dropped.
    From a cache: clean [T,P], text [S,Dt], text_layout. From clips: videos uint8 [F,H,W,3], posterior noise, captions.
    Where processes share a pack, noise, timestep, layout and rates are of this process's piece, and the rest is of the
    samples that it makes for all of them (text_layout is None where these are none), until they trade.
    Tokens of references (packing.py) have level 0 in `timestep`, and so no loss; of clips `references` has their uint8
    [F,H,W,3], a list each, where any has some. seen: [R], the noise levels that the model sees, where references have
    noise too; their tokens have it in `noise`, which is 0 of others.
    conditions: what a model reads beside these. known: bool [T, p q], of a model that is told what is known by
    channels: which latent positions of each token are; known_tokens: int64 [R], wholly known tokens of each latent
    frame in the whole sample. low: of a model that sees smaller clips by channels, which are `conditions` when they are
    encoded, one of each sample or None. motion: float32 [N], the motion strengths that the model is told. control:
    [T,P], of the control branch's signal; of clips its frames are in `references`. by_model: bool [N], samples whose
    target is what the model before training predicts; None: no run of such.
    """

    noise: Tensor
    timestep: Tensor
    layout: Packed
    rates: Tensor
    clean: Tensor | None = None
    text: Tensor | None = None
    text_layout: Packed | None = None
    videos: list[Tensor] | None = None
    posterior: list[Tensor] | None = None
    references: list[list[Tensor]] | None = None
    captions: list[str] | None = None
    conditions: Conditions | None = None
    motion: Tensor | None = None
    known: Tensor | None = None
    known_tokens: Tensor | None = None
    low: list[Low | None] | None = None
    control: Tensor | None = None
    by_model: Tensor | None = None
    made: tuple[int, ...] = ()  # global numbers of the samples that this process makes
    counted: tuple[int, ...] = ()  # of each sample that `tokens` counts: tokens that have a loss, not being given
    counted_in_all: int = 0  # in the whole pack
    numbers: tuple[int, ...] = ()  # global numbers of the layout's samples
    seen: Tensor | None = None
    replaced: int = 0  # clips read instead of others
    ready: bool = False  # encoded and traded

    @property
    def tokens(self) -> list[int]:
        """Of each sample that a token of this pack is of, all: also those in other processes' pieces."""
        return self.layout.sample_lengths

    def _map(self, change) -> DitPack:
        def each(value: Any) -> Any:
            if isinstance(value, list):
                return [each(v) for v in value]
            if isinstance(value, Conditions | Low):
                return value.map(change)
            return change(value) if isinstance(value, Tensor | Packed) else value

        return replace(self, **{f.name: each(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device) -> DitPack:
        return self._map(lambda v: v.to(device, non_blocking=True))

    def pin_memory(self) -> DitPack:
        return self._map(lambda v: v.pin_memory())
