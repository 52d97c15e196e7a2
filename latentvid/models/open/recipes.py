"""Which recipe a published pipeline has: the one table of them, by the class that model_index.json names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import UserError
from . import animatediff, cogvideox, hunyuan, hunyuan15, ltx, ltx2, mochi, svd, unet3d, wan
from .recipe import Recipe

Choice = Callable[[Mapping[str, Any], Mapping[str, Any]], Recipe]  # by model_index.json and the transformer's config


PIPELINES: dict[str, Recipe | Choice] = {
    **animatediff.RECIPES,
    **cogvideox.RECIPES,
    **hunyuan.RECIPES,
    **hunyuan15.RECIPES,
    **ltx.RECIPES,
    **ltx2.RECIPES,
    **mochi.RECIPES,
    **svd.RECIPES,
    **unet3d.RECIPES,
    **wan.RECIPES,
}

OF_UNETS = {*animatediff.RECIPES, *svd.RECIPES, *unet3d.RECIPES}  # pipelines whose network is the part "unet"


def recipe_of(pipeline: str, index: Mapping[str, Any], config: Mapping[str, Any]) -> Recipe:
    """Of the variant that a repository's index and its transformer's configuration tell of. Raises UserError."""
    if pipeline not in PIPELINES:
        raise UserError(f"{pipeline} is not among the pipelines that are known: {', '.join(PIPELINES)}")
    found = PIPELINES[pipeline]
    return found if isinstance(found, Recipe) else found(index, config)
