"""A small instance of each published family and variant with four samples for it, for tests of all of them.

Heads are even, so that two processes can share packs, and no weight is as at its beginning.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    WanTransformer3DModel,
)
from open_models import LEVELS, WORDS, Sample, lively, samples
from torch import nn

from latentvid.models.open import Conditions

Instance = tuple[nn.Module, list[Sample]]

WAN = dict(num_attention_heads=4, attention_head_dim=24, text_dim=24, freq_dim=32, ffn_dim=64, num_layers=2)
COGVIDEOX = dict(
    num_attention_heads=4, attention_head_dim=16, out_channels=4, time_embed_dim=16, text_embed_dim=24, num_layers=2,
    sample_width=14, sample_height=10, sample_frames=9,
)  # fmt: skip
HUNYUAN = dict(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=2,
    num_refiner_layers=2, text_embed_dim=24, pooled_projection_dim=12, rope_axes_dim=(4, 6, 6),
)  # fmt: skip
HUNYUAN15 = dict(
    in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_refiner_layers=2,
    patch_size=1, text_embed_dim=24, text_embed_2_dim=20, image_embed_dim=12, rope_axes_dim=(4, 6, 6),
)  # fmt: skip
MOCHI = dict(
    num_attention_heads=2, attention_head_dim=16, num_layers=3, pooled_projection_dim=24, in_channels=4,
    text_embed_dim=32, time_embed_dim=16, max_sequence_length=8,
)  # fmt: skip
LTX = dict(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=20, cross_attention_dim=40, num_layers=2
)  # fmt: skip
LTX2 = dict(
    audio_in_channels=3, audio_out_channels=3, audio_num_attention_heads=2, audio_attention_head_dim=8,
    audio_cross_attention_dim=16,
)  # fmt: skip


def with_conditions(made: list[Sample], channels: int = 0, image: tuple[int, int] = (0, 0)) -> list[Sample]:
    """Samples with so many further channels, and states of an image encoder: tokens and width."""
    rand = torch.Generator().manual_seed(3)
    for s in made:
        s.given = Conditions(
            channels=torch.randn(channels, *s.latent.shape[1:], generator=rand) if channels else None,
            image=torch.randn(1, *image, generator=rand) if image[0] else None,
        )
    return made


def wan(channels: int = 0, clip_tokens: int = 0) -> Instance:
    of_image = dict(image_dim=20, added_kv_proj_dim=96) if clip_tokens else {}
    raw = WanTransformer3DModel(**WAN, **of_image, in_channels=4 + channels, out_channels=4)
    return lively(raw), with_conditions(samples(4, (1, 2, 2), 24), channels, (clip_tokens, 20))


def cogvideox(channels: int = 0, **changes) -> Instance:
    raw = CogVideoXTransformer3DModel(**COGVIDEOX, **changes, in_channels=4 + channels)
    turns = raw.config.use_rotary_positional_embeddings
    patch = (raw.config.patch_size_t or 1, 2, 2)
    return lively(raw), with_conditions(samples(4, patch, 24, words=WORDS if turns else [6] * 4), channels)


def hunyuan(levels: Sequence = LEVELS, **changes) -> Instance:
    made, rand = samples(4, (1, 2, 2), 24, levels=levels), torch.Generator().manual_seed(3)
    for s in made:
        s.given = Conditions(pooled=torch.randn(1, 12, generator=rand), guidance=torch.tensor([6.0]))
    return lively(HunyuanVideoTransformer3DModel(**HUNYUAN, **changes)), made


def hunyuan15() -> Instance:
    """Of the samples some have an image, and some quoted texts."""
    made, rand = samples(4, (1, 1, 1), 24), torch.Generator().manual_seed(3)
    for s, second, image in zip(made, (2, 0, 3, 1), (5, 0, 5, 0), strict=True):
        s.given = Conditions(
            channels=torch.randn(5, *s.latent.shape[1:], generator=rand),
            second=torch.randn(second, 20, generator=rand) if second else None,
            image=torch.randn(1, image, 12, generator=rand) if image else None,
        )
    return lively(HunyuanVideo15Transformer3DModel(**HUNYUAN15)), made


def with_rates(made: list[Sample]) -> list[Sample]:
    """Frames a second; the first has none."""
    for s, rate in zip(made, (0.0, 24.0, 30.0, 12.5), strict=True):
        s.fps = rate
    return made


def ltx() -> Instance:
    return lively(LTXVideoTransformer3DModel(**LTX, caption_channels=24)), with_rates(samples(4, (1, 1, 1), 24))


def ltx2(**changes) -> Instance:
    raw = LTX2VideoTransformer3DModel(**LTX, **LTX2, **changes, caption_channels=24)
    return lively(raw), with_rates(samples(4, (1, 1, 1), 24 if raw.config.use_prompt_embeddings else 40))


def mochi() -> Instance:
    return lively(MochiTransformer3DModel(**MOCHI)), samples(4, (1, 2, 2), 32)


V1 = dict(use_rotary_positional_embeddings=True, max_text_seq_length=5)
LTX23 = dict(
    gated_attn=True, audio_gated_attn=True, cross_attn_mod=True, audio_cross_attn_mod=True, rope_type="split",
    use_prompt_embeddings=False,
)  # fmt: skip
V15 = dict(V1, patch_size_t=2, ofs_embed_dim=16)
INSTANCES: dict[str, Callable[[], Instance]] = {
    "wan": wan,
    "wan-i2v": partial(wan, channels=5),
    "wan-i2v-clip": partial(wan, channels=5, clip_tokens=9),
    "cogvideox": partial(cogvideox, **V1),
    "cogvideox-2b": partial(cogvideox, max_text_seq_length=6),
    "cogvideox-1.5-i2v": partial(cogvideox, channels=4, **V15),
    "hunyuan": hunyuan,
    "hunyuan-i2v": partial(
        hunyuan,
        levels=[(0.0, 0.9, 0.9), (0.25,), (0.0, 0.5), (0.0, 0.125, 0.125)],
        image_condition_type="token_replace",
    ),
    "hunyuan15": hunyuan15,
    "ltx": ltx,
    "ltx2": ltx2,
    "ltx2.3": partial(ltx2, **LTX23),
    "mochi": mochi,
}
