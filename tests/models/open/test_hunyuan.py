"""HunyuanVideo's transformers in packs: with and without a guidance embedding, both kinds of image to video."""

import inspect

import pytest
import torch
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video
from open_instances import HUNYUAN
from open_models import Sample, check_packed_equals_alone, lively, run_packed, samples, together
from torch import nn

from latentvid.errors import UserError
from latentvid.models.open import Conditions, packed
from latentvid.models.open.recipes import recipe_of

PATCH = (1, 2, 2)
GIVEN_FIRST = [(0.0, 0.9, 0.9), (0.25,), (0.0, 0.5), (0.0, 0.125, 0.125)]


def build(**options):
    torch.manual_seed(0)
    return HunyuanVideoTransformer3DModel(**{**HUNYUAN, **options})


def made(guided: bool = True, channels: int = 0, **options) -> list[Sample]:
    rand = torch.Generator().manual_seed(3)
    made = samples(4, PATCH, 24, **options)
    for s, scale in zip(made, (6.0, 1.0, 3.5, 6.0), strict=True):
        s.given = Conditions(
            pooled=torch.randn(1, 12, generator=rand),
            guidance=torch.tensor([scale]) if guided else None,
            channels=torch.randn(channels, *s.latent.shape[1:], generator=rand) if channels else None,
        )
    return made


def alone(raw, s: Sample):
    """On text with padding, which the mask hides."""
    x = s.latent if s.given.channels is None else torch.cat([s.latent, s.given.channels])
    text = torch.cat([s.text, torch.full((4, s.text.shape[1]), 3.0)])[None]
    mask = torch.cat([torch.ones(len(s.text)), torch.zeros(4)])[None]
    guidance = None if s.given.guidance is None else 1000 * s.given.guidance
    return raw(x[None], 1000 * s.level[None], text, mask, s.given.pooled, guidance, return_dict=False)[0][0]


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("guided", [True, False])
def test_text_to_video(guided, pieces):
    pack = made(guided)
    check_packed_equals_alone(build(guidance_embeds=guided), alone, pack, together(pack, PATCH), pieces=pieces)


def test_image_to_video_by_channels():
    """33 channels in the published model: 16 noised, 16 of the image's latent and a mask."""
    raw = build(guidance_embeds=False, in_channels=9, image_condition_type="latent_concat")
    pack = made(False, channels=5)
    check_packed_equals_alone(raw, alone, pack, together(pack, PATCH))
    model = packed(raw)
    assert (model.latent_channels, model.channels, model.levels_by_frame) == (4, 5, False)


@pytest.mark.parametrize("pieces", [1, 2])
def test_image_to_video_by_a_given_first_frame(pieces):
    """The class takes the first frame as given, so a sample of one frame is none."""
    raw = build(image_condition_type="token_replace")
    keep = [0, 2, 3]
    pack = [made(levels=GIVEN_FIRST)[i] for i in keep]
    check_packed_equals_alone(raw, alone, pack, together(pack, PATCH), pieces=pieces)
    assert packed(raw).levels_by_frame


def test_without_given_frames_tokens_are_not_replaced():
    """Frames of levels above 0 are told the guidance, single ones too: as in the plain class, of the same weights."""
    replacing, plain = build(image_condition_type="token_replace"), build()
    plain.load_state_dict(lively(replacing).state_dict())
    pack = made()
    outputs = [run_packed(packed(raw.eval()), pack, PATCH, together(pack, PATCH)) for raw in (replacing, plain)]
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_recomputation_changes_nothing():
    pack = made()
    check_packed_equals_alone(
        build(), alone, pack, together(pack, PATCH), change=lambda model: model.enable_gradient_checkpointing()
    )


def test_conditions_that_do_not_fit_are_said():
    pack = made()
    given = together(pack, PATCH)
    with pytest.raises(ValueError, match="give conditions.pooled"):
        run_packed(packed(build()), pack, PATCH, Conditions(guidance=given.guidance))
    with pytest.raises(ValueError, match="told a guidance scale: give conditions.guidance"):
        run_packed(packed(build()), pack, PATCH, Conditions(pooled=given.pooled))
    with pytest.raises(ValueError, match="no guidance embedding: leave out conditions.guidance"):
        run_packed(packed(build(guidance_embeds=False)), pack, PATCH, given)


def test_texts_are_read_as_in_diffusers_pipelines():
    text, pooled = recipe_of("HunyuanVideoPipeline", {}, {}).text
    theirs = pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE
    assert (text.template, text.crop) == (theirs["template"], theirs["crop_start"])
    parameters = inspect.signature(HunyuanVideoPipeline._get_llama_prompt_embeds).parameters
    assert text.tokens == parameters["max_sequence_length"].default
    assert text.layer == -1 - parameters["num_hidden_layers_to_skip"].default
    assert (
        pooled.tokens
        == inspect.signature(HunyuanVideoPipeline._get_clip_prompt_embeds).parameters["max_sequence_length"].default
    )


def test_image_to_video_with_llava_is_refused():
    with pytest.raises(UserError, match="Llava .* not supported"):
        recipe_of("HunyuanVideoImageToVideoPipeline", {}, {})


@pytest.mark.parametrize("guided", [True, False])
def test_the_recipe_tells_guidance_to_models_that_take_it(guided):
    raw = build(guidance_embeds=guided)
    recipe = recipe_of("HunyuanVideoPipeline", {}, raw.config)
    assert packed(raw).takes_guidance == guided == (recipe.guidance_embedded == 6.0) == (recipe.guidance == 1.0)


def test_lora_changes_layers_of_the_blocks_alone():
    model = packed(build())
    layers = [
        f"{i}.{name}"
        for i, block in enumerate(model.blocks)
        for name, m in block.named_modules()
        if type(m) is nn.Linear
    ]
    of = {
        ending: [name for name in layers if name.endswith(f".{ending}")]
        for ending in recipe_of("HunyuanVideoPipeline", {}, {}).lora
    }
    assert {ending: len(names) for ending, names in of.items()} == {
        **dict.fromkeys(("to_q", "to_k", "to_v"), 4),  # in all blocks
        **dict.fromkeys(("to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"), 2),
        **dict.fromkeys(("proj_mlp", "proj_out"), 2),
    }
