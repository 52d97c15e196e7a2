"""Wan's transformers in packs: text to video, image to video by channels and by CLIP tokens, a level each frame."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from open_models import WORDS, Sample, check_packed_equals_alone, samples, tokens_of

from latentvid.errors import UserError
from latentvid.models.open import Conditions

SMALL = dict(num_attention_heads=3, attention_head_dim=32, text_dim=24, freq_dim=32, ffn_dim=64, num_layers=2)
PATCH = (1, 2, 2)


def alone(raw, s: Sample):
    channels = [] if s.given.channels is None else [s.given.channels]
    x = torch.cat([s.latent, *channels])[None]
    return raw(x, 1000 * s.level[None], s.text[None], s.given.image, return_dict=False)[0][0]


def alone_by_frame(raw, s: Sample):
    tokens = s.latent.shape[2] // 2 * s.latent.shape[3] // 2
    level = 1000 * s.levels.repeat_interleave(tokens)[None]
    return raw(s.latent[None], level, s.text[None], return_dict=False)[0][0]


def test_text_to_video():
    raw = WanTransformer3DModel(**SMALL, in_channels=4, out_channels=4)
    check_packed_equals_alone(raw, alone, samples(4, PATCH, 24))


def test_a_level_each_frame():
    raw = WanTransformer3DModel(**SMALL, in_channels=4, out_channels=4)
    levels = [(0.0, 0.5, 0.9), (0.3,), (0.0, 0.7), (0.6, 0.2, 0.4)]
    check_packed_equals_alone(raw, alone_by_frame, samples(4, PATCH, 24, levels=levels))


@pytest.mark.parametrize("clip_tokens", [0, 9])
def test_image_to_video(clip_tokens):
    """14B: mask and image latents are further channels; 2.1 reads CLIP tokens too, beside 512 text tokens, a number
    that the class has written into it."""
    of_image = dict(image_dim=20, added_kv_proj_dim=96) if clip_tokens else {}
    raw = WanTransformer3DModel(**SMALL, **of_image, in_channels=9, out_channels=4)
    made = samples(4, PATCH, 24, words=[512] * 4 if clip_tokens else WORDS)
    rand = torch.Generator().manual_seed(3)
    for s in made:
        s.given = Conditions(
            channels=torch.randn(5, *s.latent.shape[1:], generator=rand),
            image=torch.randn(1, clip_tokens, 20, generator=rand) if clip_tokens else None,
        )
    together = Conditions(
        channels=torch.cat([tokens_of(s.given.channels, PATCH) for s in made]),
        image=torch.cat([s.given.image for s in made]) if clip_tokens else None,
    )
    check_packed_equals_alone(raw, alone, made, together)


def test_first_and_last_picture():
    """Their CLIP tokens have places of their own, which the class adds to a row of each."""
    sizes = dict(image_dim=20, added_kv_proj_dim=96, pos_embed_seq_len=18, in_channels=4, out_channels=4)
    raw = WanTransformer3DModel(**SMALL, **sizes)
    made = samples(4, PATCH, 24, words=[512] * 4)
    rand = torch.Generator().manual_seed(3)
    for s in made:
        s.given = Conditions(image=torch.randn(1, 18, 20, generator=rand))

    def alone_with_both(raw, s: Sample):
        rows = s.given.image.unflatten(1, (2, 9))[0]
        return raw(s.latent[None], 1000 * s.level[None], s.text[None], rows, return_dict=False)[0][0]

    together = Conditions(image=torch.cat([s.given.image for s in made]))
    check_packed_equals_alone(raw, alone_with_both, made, together)
    with pytest.raises(UserError, match="reads a first and a last picture"):
        check_packed_equals_alone(raw, alone_with_both, made, Conditions(image=together.image[:, :9]))


def test_recomputation_changes_nothing():
    raw = WanTransformer3DModel(**SMALL, in_channels=4, out_channels=4)
    check_packed_equals_alone(
        raw, alone, samples(4, PATCH, 24), change=lambda model: model.enable_gradient_checkpointing()
    )
