"""How what is known of a clip conditions the rest, by the model of a pipeline.

Axes: latents are [C,f,h,w], pictures uint8 [H,W,3].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import UserError
from ..limits import check
from ..models.transformer import VideoDiT
from ..packing import Grid
from .sampling import Request, Sampling, condition_of, with_frames


def noise_range(values: Sequence[float] | None) -> tuple[float, ...] | None:
    """A pipeline's `given_noise`, as its file has it. Raises UserError."""
    if values is None:
        return None
    if len(values) != 2:
        raise UserError(f"given_noise={list(values)}: give the lowest and the highest level")
    return tuple(check("given.noise", each) for each in values)


class KnownMixin:
    """Beside `encode` (codec.py), and `config` and `transformer` of the pipeline."""

    takes_last = False  # a last picture beside the first, by other means than noise levels

    def begin_with(
        self,
        images: Sequence[Tensor],
        grids: Sequence[Grid],
        precision: torch.dtype | None = None,
        lasts: Sequence[Tensor] | None = None,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> list[dict[str, Tensor]]:
        """What requests of latent grids (f,h,w) for clips that begin with pictures uint8 [H,W,3] are given.

        lasts: with which they end, where the model `takes_last`. seed: of noise in the first picture, the next has that
        of seed + 1, and so on.
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

    def _complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Request]:
        """With the model's negative prompt, and the sampling's motion, where there are none. Raises UserError for what
        the model cannot take."""
        found = []
        for r in requests:
            negative = self.negative_prompt if r.negative_prompt is None else r.negative_prompt
            strength = sampling.motion_strength if r.motion_strength is None else r.motion_strength
            found.append(replace(r, negative_prompt=negative, motion_strength=strength))
        asked = [check("motion_strength", r.motion_strength) for r in found if r.motion_strength is not None]
        if asked and not self.transformer.tells_motion:
            raise UserError(
                f"motion strength {asked[0]:g}: the model was trained without model.motion_condition: leave "
                "--motion-strength out"
            )
        return found

    def noise_of_given(self, sampling: Sampling, condition: str, cached: bool) -> float:
        """The noise level of frames that are given by noise levels. Raises UserError for one that the model was not
        trained with, and where nothing is given so."""
        trained, asked = self.config.get("given_noise"), sampling.image_noise
        if asked is not None and trained is None:
            raise UserError(
                f"image noise {asked:g}: the model was trained without noise in given frames (given.noise): leave "
                "--image-noise out"
            )
        if asked is not None and not trained[0] <= check("image_noise", asked) <= trained[1]:
            raise UserError(
                f"image noise {asked:g}: the model was trained with {trained[0]:g} to {trained[1]:g}: give one of "
                "these (--image-noise)"
            )
        if condition != "levels":
            if asked is not None:
                raise UserError(f"image noise {asked:g} is of condition 'levels', not of {condition!r}: leave one out")
            return 0.0
        level = 0.0 if trained is None else trained[0] if asked is None else asked
        if cached and level:
            raise UserError(f"image noise {level:g}: a rollout with a cache has none: sample whole clips with it")
        return level

    @property
    def told(self) -> bool:
        """Whether the model is told what is known by further input channels."""
        return self.channel_kind == "mask_and_latents"

    @property
    def channel_kind(self) -> str:
        """`VideoDiT`'s condition_channels; "none" of published models, which have channels of their own."""
        return self.transformer.config.condition_channels if isinstance(self.transformer, VideoDiT) else "none"
