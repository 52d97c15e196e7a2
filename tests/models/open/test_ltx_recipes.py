"""What LTX's published pipelines say, as a configuration takes it."""

import diffusers
import pytest

from latentvid.diffusion.masks import GivenFrames
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.diffusion.timesteps import TimestepSampling
from latentvid.models.open import ltx, ltx2

EACH = [(ltx.LTX, name, recipe) for name, recipe in ltx.RECIPES.items()]
EACH += [(ltx2.LTX2, name, recipe) for name, recipe in ltx2.RECIPES.items()]


@pytest.mark.parametrize(("family", "name", "recipe"), EACH, ids=[name for _, name, _ in EACH])
def test_recipes_are_taken_as_they_are(family, name, recipe):
    assert hasattr(diffusers, name) and all(hasattr(family, key) for key in recipe.backbone)
    scheduler = LatentVideoScheduler(**recipe.scheduler)
    levels = scheduler.levels(recipe.steps, tokens=4096)
    assert (levels.diff() < 0).all() and levels[-1] == 0
    if recipe.scheduler.get("terminal"):
        assert float(levels[-2]) == pytest.approx(0.1, abs=1e-6)
    assert TimestepSampling(**recipe.timesteps).uniform == 0.1
    assert GivenFrames(**recipe.given).names == ("plain", "first")
