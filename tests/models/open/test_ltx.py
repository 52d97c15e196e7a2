"""LTX-Video's transformer in packs: both pipelines' positions, mixed frame rates, a level each frame."""

import pytest
import torch
from diffusers import LTXConditionPipeline, LTXVideoTransformer3DModel
from einops import rearrange
from open_models import Sample, check_packed_equals_alone, samples, tokens_of

from latentvid.errors import UserError
from latentvid.models.open import packed

PATCH = (1, 1, 1)
SMALL = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=20, num_layers=2)
SMALL |= dict(cross_attention_dim=40, caption_channels=24)  # 40 is no multiple of 6: some features are not turned
RATES = [0.0, 24.0, 30.0, 12.5]


def small(**changes) -> LTXVideoTransformer3DModel:
    return LTXVideoTransformer3DModel(**SMALL | changes)


def made(**changes) -> list[Sample]:
    found = samples(4, PATCH, 24, **changes)
    for s, rate in zip(found, RATES, strict=True):
        s.fps = rate
    return found


def run(raw, s: Sample, **positions):
    """Text padded to 9 tokens, which the class masks."""
    f, h, w = s.latent.shape[1:]
    text = torch.cat([s.text, torch.full((9 - len(s.text), 24), 3.0)])[None]
    mask = (torch.arange(9) < len(s.text)).long()[None]
    levels = 1000 * s.levels.repeat_interleave(h * w)[None]  # [1,T]
    out = raw(tokens_of(s.latent, PATCH)[None], text, levels, mask, **positions, return_dict=False)[0][0]
    return rearrange(out, "(f h w) C -> C f h w", f=f, h=h, w=w)


def alone(raw, s: Sample):
    """As `LTXPipeline` calls it."""
    f, h, w = s.latent.shape[1:]
    return run(raw, s, num_frames=f, height=h, width=w, rope_interpolation_scale=(8 / (s.fps or 25), 32, 32))


def alone_causal(raw, s: Sample):
    """As `LTXConditionPipeline` calls it."""
    ids = LTXConditionPipeline._prepare_video_ids(1, *s.latent.shape[1:])
    coords = LTXConditionPipeline._scale_video_ids(ids, 32, 8, 0).float()
    coords[:, 0] = coords[:, 0] * (1.0 / (s.fps or 25))
    return run(raw, s, video_coords=coords)


def test_text_to_video_at_mixed_frame_rates():
    check_packed_equals_alone(small(), alone, made())


def test_positions_of_the_condition_pipeline():
    check_packed_equals_alone(small(), alone_causal, made(), change=lambda m: setattr(m, "causal_positions", True))


def test_image_to_video_is_a_first_frame_at_level_0():
    levels = [(0.0, 0.9, 0.9), (0.3,), (0.0, 0.7), (0.6, 0.2, 0.4)]
    check_packed_equals_alone(small(), alone, made(levels=levels))


def test_a_pack_in_pieces():
    check_packed_equals_alone(small(), alone, made(), pieces=2)


def test_recomputation_changes_nothing():
    check_packed_equals_alone(small(), alone, made(), change=lambda m: m.enable_gradient_checkpointing())


def test_what_the_rest_of_the_code_asks():
    model = packed(small())
    assert (model.patch, model.latent_channels, model.channels, model.text_width) == (PATCH, 4, 0, 24)
    assert (model.width, model.heads, len(model.blocks), model.levels_by_frame) == (40, 2, 2, True)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(UserError, match="patch_size_t 1 and patch_size 2 cannot be used: published ones have 1 and 1"):
        packed(small(patch_size=2))
