"""HunyuanVideo 1.5's transformers in packs: with and without images and quoted texts."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideo15Pipeline, HunyuanVideo15Transformer3DModel
from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor
from open_instances import HUNYUAN15
from open_models import Sample, check_packed_equals_alone, run_packed, samples, together

from latentvid.errors import UserError
from latentvid.models.open import Conditions, packed, read_published
from latentvid.models.open.recipes import recipe_of

PATCH = (1, 1, 1)
PICTURE = 5  # tokens


def build(**options):
    torch.manual_seed(0)
    return HunyuanVideo15Transformer3DModel(**{**HUNYUAN15, **options})


def made(quoted=(2, 0, 3, 1), images=(False,) * 4) -> list[Sample]:
    rand = torch.Generator().manual_seed(3)
    made = samples(4, PATCH, 24)
    for s, n, has in zip(made, quoted, images, strict=True):
        s.given = Conditions(
            channels=torch.randn(5, *s.latent.shape[1:], generator=rand),
            second=torch.randn(n, 20, generator=rand) if n else None,
            image=torch.randn(1, PICTURE, 12, generator=rand) if has else None,
        )
    return made


def alone(raw, s: Sample):
    """On texts with padding, which the masks hide; no image is one of zeros."""

    def padded(x):
        return torch.cat([x, torch.full((4, x.shape[1]), 3.0)])[None], torch.cat([torch.ones(len(x)), torch.zeros(4)])[
            None
        ]

    text, mask = padded(s.text)
    second, second_mask = padded(torch.zeros(0, 20) if s.given.second is None else s.given.second)
    image = torch.zeros(1, PICTURE, 12) if s.given.image is None else s.given.image
    x = torch.cat([s.latent, s.given.channels])[None]
    return raw(
        x,
        1000 * s.level[None],
        text,
        mask,
        encoder_hidden_states_2=second,
        encoder_attention_mask_2=second_mask,
        image_embeds=image,
        return_dict=False,
    )[0][0]


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(
    ("quoted", "images"),
    [
        ((2, 0, 3, 1), (False,) * 4),
        ((2, 0, 3, 1), (True,) * 4),
        ((0, 0, 0, 0), (False,) * 4),
        ((0, 4, 0, 0), (True, False, True, False)),
    ],
)
def test_texts_and_images(quoted, images, pieces):
    pack = made(quoted, images)
    check_packed_equals_alone(build(), alone, pack, together(pack, PATCH), pieces=pieces)


def test_recomputation_changes_nothing():
    pack = made(images=(True,) * 4)
    check_packed_equals_alone(
        build(), alone, pack, together(pack, PATCH), change=lambda model: model.enable_gradient_checkpointing()
    )


def test_what_takes_no_part_is_frozen_and_the_rest_has_a_gradient():
    model, pack = packed(build()), made(quoted=(0,) * 4)
    sum(y.sum() for y in run_packed(model, pack, PATCH, together(pack, PATCH))).backward()
    idle = [name for name, p in model.raw.named_parameters() if not p.requires_grad]
    assert idle and all(model.idle(name) for name in idle)
    assert [name for name, p in model.raw.named_parameters() if p.grad is None] == idle


def test_conditions_that_do_not_fit_are_said():
    pack = made(images=(True,) * 4)
    model, given = packed(build()), together(pack, PATCH)
    with pytest.raises(ValueError, match="second_lengths .* give 4 numbers"):
        run_packed(model, pack, PATCH, Conditions(channels=given.channels, second=given.second))
    with pytest.raises(ValueError, match="image is of 4 samples"):
        has = (True, False, True, True)
        run_packed(model, pack, PATCH, Conditions(channels=given.channels, image=given.image, has_image=has))
    with pytest.raises(UserError, match="use_meanflow"):
        packed(build(use_meanflow=True))


def test_texts_are_read_as_in_diffusers_pipeline():
    text, quoted = recipe_of("HunyuanVideo15Pipeline", {}, {}).text
    theirs = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters
    assert text.template == (
        f"<|im_start|>system\n{theirs['system_message'].default}<|im_end|>\n"
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (text.tokens, text.crop) == (theirs["tokenizer_max_length"].default, theirs["crop_start"].default)
    assert text.layer == -1 - theirs["num_hidden_layers_to_skip"].default
    theirs = inspect.signature(HunyuanVideo15Pipeline._get_byt5_prompt_embeds).parameters
    assert quoted.tokens == theirs["tokenizer_max_length"].default


def test_sizes_and_tasks_are_the_repositorys():
    made = {
        (name, side): recipe_of(f"HunyuanVideo15{name}", {}, {"target_size": side})
        for name in ("Pipeline", "ImageToVideoPipeline")
        for side in (640, 960)
    }
    assert [recipe.task for recipe in made.values()] == ["t2v", "t2v", "i2v", "i2v"]
    for (_, side), recipe in made.items():
        chosen = HunyuanVideo15ImageProcessor().calculate_default_height_width(9, 16, side)
        assert (recipe.height, recipe.width) == chosen


def test_a_repository_tells_shift_and_guidance(repository, tmp_path):
    found = read_published(repository("hunyuan15_image"))
    recipe = found.recipe
    assert (recipe.task, recipe.image, recipe.guidance, recipe.scheduler["shift"]) == ("i2v", "concat", 6.0, 5.0)
    assert {"image_encoder", "feature_extractor", "text_encoder_2"} <= found.parts.keys()
    folder = Path(shutil.copytree(repository("hunyuan15"), tmp_path / "distilled"))
    file = folder / "guider" / "guider_config.json"
    held = json.loads(file.read_text())
    file.write_text(json.dumps(held | {"guidance_scale": 1.0}))
    assert (read_published(folder).recipe.task, read_published(folder).recipe.guidance) == ("t2v", 1.0)
    file.write_text(json.dumps(held | {"enabled": False}))
    assert read_published(folder).recipe.guidance == 1.0
    file.write_text(json.dumps(held | {"stop": 0.5}))
    with pytest.raises(UserError, match="guider_config.json: stop=0.5: only 1 can be sampled here"):
        read_published(folder)
