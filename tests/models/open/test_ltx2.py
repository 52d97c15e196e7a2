"""The video half of LTX-2's transformer in packs, against the class with its halves isolated."""

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from einops import rearrange
from open_models import Sample, check_packed_equals_alone, gradients, run_packed, samples, tokens_of

from latentvid.models.open import packed

PATCH = (1, 1, 1)
SMALL = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=20, cross_attention_dim=40)
SMALL |= dict(audio_in_channels=3, audio_out_channels=3, audio_num_attention_heads=2, audio_attention_head_dim=8)
SMALL |= dict(audio_cross_attention_dim=16, num_layers=2, caption_channels=24)
OF_23 = dict(gated_attn=True, audio_gated_attn=True, cross_attn_mod=True, audio_cross_attn_mod=True, rope_type="split")
OF_23 |= dict(use_prompt_embeddings=False, perturbed_attn=True)
FORMS = {
    "2.0": {},
    "2.0 split": dict(rope_type="split"),
    "2.0 single precision": dict(rope_double_precision=False),
    "2.3": OF_23,
    "2.5": OF_23 | dict(ff_bias=False, use_prompt_adaln_single=False, use_keyframes_abs_pos_embedding=True),
}
RATES = [0.0, 24.0, 30.0, 12.5]
LEVELS = [(0.0, 0.9, 0.9), (0.3,), (0.0, 0.7), (0.6, 0.2, 0.4)]


def small(form: str = "2.0") -> LTX2VideoTransformer3DModel:
    return LTX2VideoTransformer3DModel(**SMALL | FORMS[form])


def made(form: str = "2.0", **changes) -> list[Sample]:
    found = samples(4, PATCH, 24 if FORMS[form].get("use_prompt_embeddings", True) else 40, **changes)
    for s, rate in zip(found, RATES, strict=True):
        s.fps = rate
    return found


def alone(raw, s: Sample):
    f, h, w = s.latent.shape[1:]
    sound, level = torch.ones(1, 2, 3), 1000 * s.level[None]
    out, _ = raw(
        tokens_of(s.latent, PATCH)[None],
        sound,
        s.text[None],
        s.text[None, :, : raw.config.audio_cross_attention_dim if not raw.config.use_prompt_embeddings else None],
        timestep=1000 * s.levels.repeat_interleave(h * w)[None],
        audio_timestep=level,
        sigma=level,
        num_frames=f,
        height=h,
        width=w,
        fps=s.fps or 24.0,
        audio_num_frames=2,
        isolate_modalities=True,
        return_dict=False,
    )
    return rearrange(out[0], "(f h w) C -> C f h w", f=f, h=h, w=w)


@pytest.mark.parametrize("form", FORMS)
def test_video_alone_at_mixed_frame_rates(form):
    check_packed_equals_alone(small(form), alone, made(form))


@pytest.mark.parametrize("form", ["2.0", "2.3"])
def test_a_level_each_frame(form):
    check_packed_equals_alone(small(form), alone, made(form, levels=LEVELS))


def test_a_pack_in_pieces():
    check_packed_equals_alone(small("2.3"), alone, made("2.3", levels=LEVELS), pieces=2)


@pytest.mark.parametrize("form", ["2.0 split", "2.3"])
def test_recomputation_changes_nothing(form):
    check_packed_equals_alone(
        small(form), alone, made(form, levels=LEVELS), change=lambda model: model.enable_gradient_checkpointing()
    )


@pytest.mark.parametrize("form", FORMS)
def test_all_that_is_not_frozen_has_a_gradient(form):
    model = packed(small(form))
    found = gradients(model.raw, run_packed(model, made(form), PATCH, None))
    assert found.keys() == {name for name, p in model.raw.named_parameters() if p.requires_grad}
    assert {name for name, _ in model.raw.named_parameters()} - found.keys() == {
        name for name, _ in model.raw.named_parameters() if model.idle(name)
    }
    assert model.idle("transformer_blocks.0.audio_attn1.to_q") and not model.idle("transformer_blocks.0.attn1.to_q")


def test_what_the_rest_of_the_code_asks():
    model = packed(small())
    assert (model.patch, model.latent_channels, model.channels, model.text_width) == (PATCH, 4, 0, 24)
    assert (model.width, model.heads, len(model.blocks), model.levels_by_frame) == (40, 2, 2, True)
    assert packed(small("2.3")).text_width == 40
