"""What of each sample a model is told by further input channels (`model.condition_channels`).

Axes: f h w of a latent, F H W frames, height and width in pixels, p q of a patch, n tokens of a sample, T tokens of a
pack, R latent frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....config.schema import DitConfig
from ....diffusion.masks import IN_SPACE
from ....errors import UserError
from ....models.conditions import known_latents
from ....models.open import OpenBackbone
from ....models.transformer import VideoDiT
from ....packing import Packed, Patch, Shape, Span, patchify
from ....references import low_in, mask_in

WHITE = 128  # and more, of 255


def channels_of(config: DitConfig) -> str:
    """`VideoDiT`'s condition_channels; `config.model` says so, or `init` did."""
    return config.model.get("condition_channels", "none")


def is_told(config: DitConfig) -> bool:
    """Whether what is known acts by channels, instead of noise levels."""
    return channels_of(config) == "mask_and_latents"


def sees_low(config: DitConfig) -> bool:
    """Whether smaller clips are seen by channels."""
    return channels_of(config) == "latents"


def notes_of_known(config: DitConfig) -> list[str]:
    """What is to be said at the start, a line each."""
    if sees_low(config) and low_in(config.data.references) is None:
        return [
            "model.condition_channels=latents: no clip is shown by them, so they learn nothing (a role of "
            "data.references with degrade and place=channels)"
        ]
    given = not {"plain", "independent"}.issuperset(config.given.names)
    if not is_told(config) or given or mask_in(config.data.references) is not None:
        return []
    return [
        "model.condition_channels: nothing is known of any clip, so they learn nothing (shares of `given`, or masks in "
        "data.references, say what is)"
    ]


def check_told(config: DitConfig, model: VideoDiT | OpenBackbone) -> None:
    """Raises UserError for what only a model that is told by channels can be trained on, and what it cannot."""
    if config.given.noise is not None and (is_told(config) or isinstance(model, OpenBackbone)):
        what = "this model is told what is given by channels" if is_told(config) else "this is a published model"
        raise UserError(f"given.noise is of frames that are given by noise levels, and {what}: leave noise out")
    if getattr(model, "ragged", False) and (given := set(config.given.names) - {"plain"}):
        raise UserError(
            f"given.{min(given)}: {model.family} takes one noise level a sample: leave it out, or train another model"
        )
    has = model.config.condition_channels if isinstance(model, VideoDiT) else "none"
    known = [f"given.{name}" for name in IN_SPACE if name in config.given.names]
    if (mask := mask_in(config.data.references)) is not None:
        known.append(f"data.references.{mask} (place: channels)")
    low = low_in(config.data.references)
    published = "published models have none of ours: leave it out" if isinstance(model, OpenBackbone) else None
    if known and has != "mask_and_latents":
        why = published or "set model.condition_channels=mask_and_latents"
        raise UserError(f"{known[0]}: the model has no channels by which to be told of parts of frames: {why}")
    if low is not None and has != "latents":
        why = published or "set model.condition_channels=latents, or place=aligned to show it as tokens"
        raise UserError(f"data.references.{low} (place: channels): the model has no channels by which to see it: {why}")
    if mask is not None and config.train.sequence_parallel > 1:
        raise UserError(
            f"data.references.{mask}: masks are read with their clips, which processes that share a pack share "
            "out: set train.sequence_parallel=1"
        )


def check_scale(config: DitConfig, model: VideoDiT) -> None:
    """Raises UserError for a model that is told a scale of guidance, where training tells it none."""
    if model.config.guidance_condition and config.student is None:
        begun = f" (init is {config.init})" if config.init else ""
        raise UserError(
            "model.guidance_condition is of distilled models, which are told a scale of guidance: train their teacher "
            f"and distill it again (train/distill.py), or leave it out{begun}"
        )


def check_length(model: VideoDiT | OpenBackbone, shapes: Sequence[Shape]) -> None:
    """Raises UserError where clips are longer than the model has positions."""
    try:
        model.check_frames(max(shape.grid[0] for shape in shapes) * model.patch[0])
    except UserError as error:
        raise UserError(f"data.max_frames: {error}") from None


def kept_by(masks: Sequence[Tensor], frames: int, temporal: int, spatial: int) -> Tensor | None:
    """Which latent positions masks uint8 [F,H,W,3], or [1,H,W,3], leave of a clip of so many frames: bool [f,h,w],
    those none of whose pixels is white in any of them. temporal, spatial: the VAE's strides. None without a mask, and
    where nothing is white: then nothing would be left to make."""
    white = [(mask.float().mean(-1) >= WHITE).expand(frames, *mask.shape[1:3]) for mask in masks]
    if not any(bool(each.any()) for each in white):
        return None
    return known_latents(~torch.stack(white).any(0), temporal, spatial)


def in_tokens(known: Tensor, patch: Patch) -> Tensor:
    """bool [f,h,w] -> bool [n, p q]."""
    return patchify([known[None]], patch)[0]


class Known:
    """Of the samples of a pack: latent positions that are known, by their tokens; references have none.

    frames: of each sample, how many tokens of each of its own latent frames [f] are wholly known.
    """

    def __init__(self, known: Sequence[Tensor], whole: Packed) -> None:
        """known: bool [n, p q] of each sample of the whole pack, without references."""
        self.known, self.whole = known, whole
        self.frames = [each.all(1).reshape(grid[0], -1).sum(1) for each, grid in zip(known, whole.grid, strict=True)]

    def tokens(self, span: Span) -> Tensor:
        """Of a run of the pack: bool [T, p q]."""
        parts, skip = [], span.start - int(self.whole.cu_seqlens[span.first])
        for i in range(span.first, span.last):
            blank = self.known[i].new_zeros(self.whole.lengths[i] - len(self.known[i]), self.known[i].shape[1])
            parts += [self.known[i], blank]
        return torch.cat(parts)[skip : skip + span.stop - span.start]

    def of_frames(self, span: Span) -> Tensor:
        """Of the samples of a run: [R] wholly known tokens of each latent frame of the whole sample."""
        parts = []
        for i in range(span.first, span.last):
            blank = self.frames[i].new_zeros(self.whole.shapes[i].frames - len(self.frames[i]))
            parts += [self.frames[i], blank]
        return torch.cat(parts)
