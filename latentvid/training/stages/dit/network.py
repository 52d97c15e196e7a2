"""The network that is trained: made new, or a published one; and what a sample costs in it."""

from __future__ import annotations

import numpy as np

from ....config.schema import DitConfig
from ....data.manifest.columns import Lookup
from ....errors import UserError
from ....models.flops import pairs_a_block
from ....models.kinds import KINDS, kind_of
from ....models.open import OpenBackbone
from ....models.transformer import VideoDiT
from ....packing import Shape
from ....sequence import SequenceGroup
from ....world import check_calls
from ...task import build_model
from .known import check_scale
from .parts import Parts
from .published import load_published


def told_by(config: DitConfig, parts: Parts) -> dict[str, int]:
    """The arguments of a new network that the loaded parts tell."""
    told = KINDS[kind_of(config.model)].told
    return told(parts.vae.latent_channels, parts.text.dim, parts.vae.temporal_stride)


def new_network(config: DitConfig, parts: Parts, dit: type[VideoDiT] | None = None) -> VideoDiT | OpenBackbone:
    """With new weights. dit: a class to build instead of VideoDiT. Raises UserError."""
    known, kind = told_by(config, parts), KINDS[kind_of(config.model)]
    for key, value in known.items():
        if config.model.get(key, value) != value:
            raise UserError(f"model.{key} is {config.model[key]} but the loaded parts have {value}: leave it out")
    given = {key: value for key, value in config.model.items() if key != "kind"}
    model = kind.backbone(build_model(dit or kind.cls, kind.filled({**given, **known}), "model"))
    if isinstance(model, VideoDiT):
        check_scale(config, model)
    return model


def published_network(config: DitConfig, parts: Parts) -> OpenBackbone:
    """With its weights. Raises UserError."""
    model, vae = load_published(config, parts.published), parts.vae
    model.strides = vae.temporal_stride, vae.spatial_stride  # which positions of some families count
    if model.latent_channels != vae.latent_channels:
        raise UserError(
            f"model.from: the transformer is for latents of {model.latent_channels} channels, and those of the VAE "
            f"have {vae.latent_channels}: leave vae out, or give the one it was trained with"
        )
    return model


def check_shared(sequence: SequenceGroup | None, model: VideoDiT | OpenBackbone) -> None:
    """Raises UserError where the launched processes cannot share the model, or, those that are to, each pack of it."""
    if getattr(model, "ragged", False):
        check_calls(type(model).__name__)
    if sequence is None:
        return
    asked = f"train.sequence_parallel is {sequence.size}"
    if getattr(model, "ragged", False):
        raise UserError(
            f"{asked}, and {model.family} runs as batches of whole samples, which processes cannot share: set "
            "train.sequence_parallel to 1"
        )
    if (kind := getattr(model.config, "attention", "full")) != "full" and isinstance(model, VideoDiT):
        raise UserError(
            f"{asked}, but model.attention is {kind!r}: set train.sequence_parallel to 1, or model.attention to full"
        )
    if model.heads % sequence.size:
        raise UserError(
            f"{asked}, which does not divide model.heads, {model.heads}: each process takes as many heads as the others"
        )


def costs_of(model: VideoDiT | OpenBackbone, shapes: Lookup[Shape], tokens: np.ndarray) -> np.ndarray:
    """Of each sample. A block's attention is 4 D a pair of tokens, its linear layers about 24 D^2 a token; networks
    without such blocks work about as much for every token."""
    if not len(model.blocks):
        return tokens
    pairs = shapes.map(lambda shape: pairs_a_block(model, shape)).array()
    return tokens + pairs / (6 * model.width)
