"""A published model in a configuration: what its repository and its recipe tell of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import torch

from ....config.conversion import under
from ....config.schema import DitConfig
from ....errors import UserError
from ....models.open import OpenBackbone, packed
from ....models.open.animatediff import load_adapter, moving, new_adapter, with_motion
from ....models.open.folder import Published, load_backbone, read_published
from ....models.open.recipe import ImageKind
from ....packing import patch_stride
from ...feed.manifests import main_first

EXPERTS = {"high": 0, "low": 1}  # their places in `Published.experts`


def published_of(config: DitConfig) -> Published | None:
    """The repository that `model.from` names, no weights read; the main process looks, and fetches, first."""
    if "from" not in config.model:
        return None
    return main_first(lambda: read_published(config.model["from"]))


def settled(config: DitConfig) -> DitConfig:
    """The configuration with what the published model's recipe says wherever neither file nor command line does."""
    published = published_of(config)
    if published is None:
        return config
    recipe = published.recipe
    if config.model.get("motion") is not None:
        recipe = moving(recipe)
    shown = {"steps": recipe.steps, "guidance": recipe.guidance}
    return replace(
        config,
        scheduler={**recipe.scheduler, **config.scheduler},
        timesteps=under(config.timesteps, {**recipe.timesteps, **levels_of(config, published)}),
        given=under(config.given, recipe.given),
        inference=under(config.inference, shown),
        samples=under(config.samples, shown),
    )


def part_of(config: DitConfig, published: Published) -> str:
    """Which of the repository's transformers is trained. Raises UserError where that is not said."""
    expert, several = config.model.get("expert"), len(published.experts) > 1
    if several and expert is None:
        raise UserError(
            f"{published.folder} has two transformers, for high and for low noise levels (from {published.boundary:g} "
            "on): they are trained one at a time, in two runs: set model.expert=high, or low"
        )
    if expert is not None and not several:
        raise UserError(f"model.expert={expert}: {published.folder} has one transformer: leave it out")
    return published.experts[EXPERTS[expert or "high"]]


def levels_of(config: DitConfig, published: Published) -> dict[str, float]:
    """The noise levels that the trained transformer is for, as fields of `TimestepSampling`."""
    part_of(config, published)
    expert = config.model.get("expert")
    if expert is None:
        return {}
    return {"low": published.boundary} if expert == "high" else {"high": published.boundary}


def load_published(config: DitConfig, published: Published) -> OpenBackbone:
    """The transformer, in fp32 or in the type that frozen weights are asked for."""
    dtype = torch.bfloat16 if config.model.get("dtype") == "bf16" else torch.float32
    if dtype == torch.bfloat16 and config.train.mixed_precision == "no":
        raise UserError(
            "model.dtype=bf16 needs passes in bf16, and train.mixed_precision is fp32 (no): set "
            "train.mixed_precision=bf16, or model.dtype=fp32"
        )
    model = load_backbone(published, part_of(config, published), dtype)
    if (motion := config.model.get("motion")) is None:
        return model
    adapter = load_adapter(Path(motion)) if isinstance(motion, str) else new_adapter(model, motion)
    return with_motion(model, adapter)


def of_model(published: Published) -> tuple[int, ImageKind | None]:
    """What encoding clips takes of a model: what the latents' sides are multiples of, and how it is given an image
    where that needs latents of its own. No weights are read."""
    with torch.device("meta"):
        model = packed(
            getattr(diffusers, published.classes[published.experts[0]]).from_config(published.network_config)
        )
    alone = published.recipe.task == "i2v" and published.recipe.image == "wan" and model.channels
    return patch_stride(model.patch), published.recipe.image if alone else None
