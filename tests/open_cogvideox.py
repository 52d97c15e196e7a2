"""Small random repositories of CogVideoX and 1.5, written by diffusers' own pipelines."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from open_text import TEXT_WIDTH, text_parts


def cogvideox_vae() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        scaling_factor=0.7,
    )


def cogvideox_transformer(inputs: int = 4, **more: Any) -> CogVideoXTransformer3DModel:
    """Of 2b; with `use_rotary_positional_embeddings` of 5b, with `patch_size_t` too of 1.5."""
    sizes = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, time_embed_dim=16)
    return CogVideoXTransformer3DModel(
        **sizes,
        in_channels=inputs,
        out_channels=4,
        text_embed_dim=TEXT_WIDTH,
        max_text_seq_length=226,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        **more,
    )


def cogvideox_schedule(snr_shift: float = 3.0) -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=snr_shift,
    )


def cogvideox() -> CogVideoXPipeline:
    """CogVideoX 2b."""
    parts = dict(vae=cogvideox_vae(), transformer=cogvideox_transformer(), scheduler=cogvideox_schedule())
    return CogVideoXPipeline(**text_parts(), **parts)


def cogvideox_image(**more: Any) -> CogVideoXImageToVideoPipeline:
    """CogVideoX 5b, image to video."""
    transformer = cogvideox_transformer(8, use_rotary_positional_embeddings=True, **more)
    parts = dict(vae=cogvideox_vae(), transformer=transformer, scheduler=cogvideox_schedule(1.0))
    return CogVideoXImageToVideoPipeline(**text_parts(), **parts)


def cogvideox_newer() -> CogVideoXPipeline:
    """CogVideoX 1.5: a token is of two latent frames."""
    transformer = cogvideox_transformer(use_rotary_positional_embeddings=True, patch_size_t=2)
    parts = dict(vae=cogvideox_vae(), transformer=transformer, scheduler=cogvideox_schedule(1.0))
    return CogVideoXPipeline(**text_parts(), **parts)
