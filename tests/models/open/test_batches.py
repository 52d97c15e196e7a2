"""Classes without a packed pass: batches of equal shapes equal each sample alone; what they cannot do is refused."""

import copy
import logging

import pytest
import torch
from diffusers import (
    AllegroTransformer3DModel,
    EasyAnimateTransformer3DModel,
    LatteTransformer3DModel,
    MotifVideoTransformer3DModel,
    SanaVideoTransformer3DModel,
    SD3Transformer2DModel,
    SkyReelsV2Transformer3DModel,
)
from open_models import Sample, check_packed_equals_alone, run_packed, samples, together

from latentvid.errors import UserError
from latentvid.models.open import Conditions, packed
from latentvid.packing import Packed, spans

GRIDS = [(3, 4, 4), (1, 6, 3), (3, 4, 4), (2, 2, 7), (3, 4, 4)]
WORDS = [7, 3, 5, 1, 7]
LEVELS = [0.9, 0.25, 0.5, 0.125, 0.75]


def sana():
    return SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, caption_channels=20,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, sample_size=8,
    )  # fmt: skip


def motif(**more):
    return MotifVideoTransformer3DModel(
        in_channels=7, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=2,
        num_decoder_layers=1, text_embed_dim=20, rope_axes_dim=(4, 6, 6), **more,
    )  # fmt: skip


def easyanimate():
    return EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=7, out_channels=4, patch_size=2, num_layers=2,
        mmdit_layers=1, time_embed_dim=16, text_embed_dim=20,
    )  # fmt: skip


def latte():
    return LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, patch_size=2,
        cross_attention_dim=24, attention_bias=True, sample_size=16, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        caption_channels=20, video_length=3,
    )  # fmt: skip


def skyreels():
    return SkyReelsV2Transformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=20, freq_dim=16,
        ffn_dim=32, num_layers=2,
    )  # fmt: skip


def alone(raw, s: Sample):
    more, latent = {}, s.latent[None]
    level = 1000 * s.level[None] - (1 if isinstance(raw, LatteTransformer3DModel) else 0)  # steps of DDPM from 0 on
    if s.given.channels is not None:
        if isinstance(raw, EasyAnimateTransformer3DModel):
            more["inpaint_latents"] = s.given.channels[None]
        else:
            latent = torch.cat([latent, s.given.channels[None]], dim=1)
    if s.given.image is not None:
        more["image_embeds"] = s.given.image
    out = raw(hidden_states=latent, timestep=level, encoder_hidden_states=s.text[None], return_dict=False, **more)
    return out[0][0, : len(s.latent)]


def made_for(raw, image: int = 0) -> list[Sample]:
    grids = [(f if f == 1 else 3, h, w) for f, h, w in GRIDS] if isinstance(raw, LatteTransformer3DModel) else GRIDS
    made = samples(4, (1, 2, 2), 20, grids, WORDS, LEVELS)
    rand = torch.Generator().manual_seed(3)
    for s in made:
        further = raw.config.in_channels - 4
        s.given = Conditions(
            channels=torch.randn(further, *s.latent.shape[1:], generator=rand) if further else None,
            image=torch.randn(1, 5, image, generator=rand) if image else None,
        )
    return made


@pytest.mark.parametrize("make", [sana, motif, lambda: motif(image_embed_dim=6), easyanimate, latte, skyreels])
def test_a_pack_equals_each_sample_alone(make, caplog):
    raw = make()
    made = made_for(raw, getattr(raw.config, "image_embed_dim", None) or 0)
    with caplog.at_level(logging.WARNING):
        check_packed_equals_alone(raw, alone, made, together(made, (1, 2, 2)))
    assert f"{type(raw).__name__} has no packed pass here" in caplog.text


def test_equal_shapes_pass_together():
    """Where text can be masked, samples of one grid are one call; elsewhere those with as many words too."""
    for raw, calls in ((sana(), 3), (skyreels(), 4)):
        model, seen = packed(raw), []
        raw.register_forward_pre_hook(lambda _, args, kwargs, seen=seen: seen.append(kwargs), with_kwargs=True)
        made = made_for(raw)
        run_packed(model, made, model.patch, None)
        assert len(seen) == calls


def test_recomputation_changes_nothing():
    raw = sana()
    check_packed_equals_alone(raw, alone, made_for(raw), change=lambda model: model.enable_gradient_checkpointing())


def test_what_batches_cannot_do_is_refused_by_name():
    model = packed(sana())
    made = made_for(model.raw)
    given = copy.deepcopy(made)
    given[0].levels[0] = 0.0
    with pytest.raises(UserError, match="SanaVideoTransformer3DModel takes one noise level a sample"):
        run_packed(model, given, model.patch, None)
    with pytest.raises(UserError, match="SanaVideoTransformer3DModel has no input for pooled"):
        run_packed(model, made, model.patch, Conditions(pooled=torch.randn(5, 3)))
    layout = Packed.of(GRIDS)
    here = layout.piece(spans(layout.lengths, 2)[0])
    model.sequence = object()
    with pytest.raises(UserError, match=r"SanaVideoTransformer3DModel .* set train\.sequence_parallel to 1"):
        model(torch.randn(here.tokens, 16), torch.rand(here.frames), torch.randn(here.segments, 20), here,
              Packed.of_lengths([1] * here.segments))  # fmt: skip
    with pytest.raises(UserError, match="AllegroTransformer3DModel reads image_rotary_emb"):
        packed(AllegroTransformer3DModel(num_attention_heads=1, attention_head_dim=12, num_layers=1))
    small = dict(num_layers=1, num_attention_heads=1, attention_head_dim=8, pos_embed_max_size=8)
    image = SD3Transformer2DModel(**small, joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=8)
    with pytest.raises(UserError, match="SD3Transformer2DModel is no video transformer"):
        packed(image)
    assert not model.blocks
