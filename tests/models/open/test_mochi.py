"""Mochi in packs: the class's sign and time are turned, so that the prediction is eps - x at level t."""

import pytest
import torch
from diffusers import MochiTransformer3DModel
from open_models import check_packed_equals_alone, samples

from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.models.open import packed
from latentvid.models.open.mochi import RECIPE

PATCH = (1, 2, 2)


def transformer() -> MochiTransformer3DModel:
    sizes = dict(num_attention_heads=2, attention_head_dim=16, num_layers=3, pooled_projection_dim=24, in_channels=4)
    return MochiTransformer3DModel(**sizes, text_embed_dim=32, time_embed_dim=16, max_sequence_length=8)


def alone(raw, s):
    """With padding, masked, as its pipeline runs it."""
    text = torch.cat([s.text, torch.full((4, s.text.shape[1]), 3.0)])[None]
    mask = torch.cat([torch.ones(len(s.text)), torch.zeros(4)])[None].bool()
    return -raw(s.latent[None], text, 1000 * (1 - s.level[None]), mask, return_dict=False)[0][0]


@pytest.mark.parametrize("words", [[7, 3, 5, 1], [2, 0, 6, 0]])
def test_text_to_video(words):
    """Of a repository that says so, an empty prompt has no tokens."""
    check_packed_equals_alone(transformer(), alone, samples(4, PATCH, 32, words=words))


def test_recomputation_changes_nothing():
    check_packed_equals_alone(
        transformer(), alone, samples(4, PATCH, 32), change=lambda model: model.enable_gradient_checkpointing()
    )


def test_facts():
    model = packed(transformer())
    assert (model.patch, model.latent_channels, model.channels, model.text_width) == (PATCH, 4, 0, 32)
    assert (model.width, model.heads, len(model.blocks), model.levels_by_frame) == (32, 2, 3, False)


@pytest.mark.parametrize("name", RECIPE)
def test_recipes_name_schedulers_that_are(name):
    assert LatentVideoScheduler(**RECIPE[name].scheduler).config.target == "flow"
