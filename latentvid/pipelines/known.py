"""How what is known of a clip conditions the rest, by the model of a pipeline.

Axes: latents are [C,f,h,w], pictures uint8 [H,W,3].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.transformer import VideoDiT
from ..packing import Grid
from .sampling import Sampling, condition_of, with_frames


class KnownMixin:
    """Beside `encode` (codec.py), and `config` and `transformer` of the pipeline."""

    takes_last = False  # a last picture beside the first, by other means than noise levels

    def begin_with(
        self,
        images: Sequence[Tensor],
        grids: Sequence[Grid],
        precision: torch.dtype | None = None,
        lasts: Sequence[Tensor] | None = None,
    ) -> list[dict[str, Tensor]]:
        """What requests of latent grids (f,h,w) for clips that begin with pictures uint8 [H,W,3] are given.

        lasts: with which they end, where the model `takes_last`.
        """
        firsts = self.encode([image[None] for image in images], precision)  # [C,1,h,w]
        return [with_frames(grid, {0: first}) for grid, first in zip(grids, firsts, strict=True)]

    def by_levels(self, sampling: Sampling | None) -> bool:
        """Whether whole frames that are known act by having noise level 0. Raises UserError."""
        return self._condition(sampling) == "levels"

    def as_trained(self, sampling: Sampling | None) -> bool:
        """Whether what is known acts as it did in training, which must have had the like. Raises UserError."""
        return self._condition(sampling) in ("levels", "channels")

    def _condition(self, sampling: Sampling | None) -> str:
        return condition_of(self.config.given, None if sampling is None else sampling.condition, self.told)

    @property
    def told(self) -> bool:
        """Whether the model is told what is known by further input channels."""
        return self.channel_kind == "mask_and_latents"

    @property
    def channel_kind(self) -> str:
        """`VideoDiT`'s condition_channels; "none" of published models, which have channels of their own."""
        return self.transformer.config.condition_channels if isinstance(self.transformer, VideoDiT) else "none"
