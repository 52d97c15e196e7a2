"""CogVideoX in packs: 2b, 5b and 1.5, text and image to video."""

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from open_models import check_packed_equals_alone, samples, tokens_of

from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.errors import UserError
from latentvid.models.open import Conditions, packed
from latentvid.models.open.cogvideox import RECIPE, variant
from latentvid.packing import Packed

SMALL = dict(num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16)
SMALL |= dict(text_embed_dim=24, num_layers=2, sample_width=14, sample_height=10, sample_frames=9)
TURNED = dict(use_rotary_positional_embeddings=True, max_text_seq_length=5)
V15 = dict(TURNED, patch_size_t=2, sample_width=20, sample_height=20)
IMAGE = dict(in_channels=8)


def transformer(**changes) -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(**{**SMALL, **changes})


def rotary(config, grid):
    """As `_prepare_rotary_positional_embeddings` of the pipelines."""
    if not config.use_rotary_positional_embeddings:
        return None
    f, h, w = grid
    width, base = config.attention_head_dim, (config.sample_height // 2, config.sample_width // 2)
    if config.patch_size_t is not None:
        return get_3d_rotary_pos_embed(width, None, (h, w), f, grid_type="slice", max_size=base)
    crop = get_resize_crop_region_for_grid((h, w), base[1], base[0])
    return get_3d_rotary_pos_embed(width, crop, (h, w), f)


def alone(raw, s):
    config = raw.config
    x = torch.cat([s.latent, *([] if s.given.channels is None else [s.given.channels])])
    grid = x.shape[1] // (config.patch_size_t or 1), x.shape[2] // 2, x.shape[3] // 2
    ofs = None if config.ofs_embed_dim is None else torch.full((1,), 2.0)
    step = (1000 * s.level).round().long()[None] - 1
    x = x.transpose(0, 1)[None]
    turned = rotary(config, grid)
    return raw(x, s.text[None], step, ofs=ofs, image_rotary_emb=turned, return_dict=False)[0][0].transpose(0, 1)


def made(raw, **changes):
    """Samples for it, and the further channels of all of them."""
    patch = packed(raw).patch
    found = samples(4, patch, 24, **changes)
    if raw.config.in_channels == raw.config.out_channels:
        return found, None
    rand = torch.Generator().manual_seed(3)
    for s in found:
        s.given = Conditions(channels=torch.randn(s.latent.shape, generator=rand))
    return found, Conditions(channels=torch.cat([tokens_of(s.given.channels, patch) for s in found]))


@pytest.mark.parametrize(
    ("changes", "patch", "name"),
    [
        pytest.param(TURNED, (1, 2, 2), "5b", id="5b"),
        pytest.param(TURNED | IMAGE, (1, 2, 2), "5b-i2v", id="5b-i2v"),
        pytest.param(V15, (2, 2, 2), "1.5", id="1.5"),
        pytest.param(V15 | IMAGE | dict(ofs_embed_dim=16), (2, 2, 2), "1.5-i2v", id="1.5-i2v"),
    ],
)
def test_models_with_rotary_positions(changes, patch, name):
    raw = transformer(**changes)
    assert (packed(transformer(**changes)).patch, variant(raw.config)) == (patch, name)
    check_packed_equals_alone(raw, alone, *made(transformer(**changes)))


def test_2b_with_sines():
    """The class adds positions to text too, zeros, for a number of tokens that is written into it."""
    raw = transformer(max_text_seq_length=6)
    assert variant(raw.config) == "2b"
    check_packed_equals_alone(raw, alone, *made(transformer(), words=[6] * 4))


LEARNED = dict(TURNED | IMAGE, use_learned_positional_embeddings=True, sample_height=8)


def learned():
    raw = transformer(**LEARNED)
    raw.patch_embed.pos_embedding = torch.randn(raw.patch_embed.pos_embedding.shape) / 2  # a buffer in the class
    return raw


def test_learned_positions():
    """5b's image to video has them beside the rotary ones: for clips of the length that it was trained on."""
    sizes = dict(shapes=[(3, 4, 7), (2, 4, 7), (5, 4, 7), (3, 4, 7)], words=[5] * 4)
    check_packed_equals_alone(learned(), alone, *made(transformer(**LEARNED), **sizes))


def test_learned_positions_know_one_size():
    model = packed(learned())

    def run(grid, words):
        layout, text_layout = Packed.of([grid]), Packed.of_lengths([words])
        n = layout.tokens
        channels = Conditions(channels=torch.zeros(n, 16))
        model(torch.zeros(n, 16), torch.ones(grid[0]), torch.zeros(words, 24), layout, text_layout, None, channels)

    run((3, 4, 7), 5)
    with pytest.raises(UserError, match="for latents of 8 x 14 alone, and got 8 x 12: give clips of that size"):
        run((3, 4, 6), 5)
    with pytest.raises(UserError, match="a prompt of 6 tokens, but this CogVideoX has learned positions for 5"):
        run((3, 4, 7), 6)


def test_recomputation_changes_nothing():
    raw = transformer(**TURNED)
    check_packed_equals_alone(
        raw, alone, *made(transformer(**TURNED)), change=lambda model: model.enable_gradient_checkpointing()
    )


@pytest.mark.parametrize("name", RECIPE)
def test_recipes_name_schedulers_that_are(name):
    scheduler = LatentVideoScheduler(**RECIPE[name].scheduler)
    assert scheduler.path.snr_shift_scale == (3.0 if name == "2b" else 1.0)
    assert RECIPE[name].text[0].pad == "encoded" and RECIPE[name].task == ("i2v" if "i2v" in name else "t2v")
