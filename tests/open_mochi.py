"""Small random repositories of Mochi, written by diffusers' own pipeline."""

from __future__ import annotations

from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel
from open_text import TEXT_WIDTH, text_parts


def mochi(zeros: bool = False) -> MochiPipeline:
    """zeros: an empty prompt has no tokens, as in Genmo's repository."""
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        latent_channels=4,
        layers_per_block=(1,) * 5,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 2.0, 1.0, 4.0],
    )
    sizes = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, pooled_projection_dim=24, in_channels=4)
    transformer = MochiTransformer3DModel(**sizes, text_embed_dim=TEXT_WIDTH, time_embed_dim=16)
    schedule = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    parts = dict(vae=vae, transformer=transformer, scheduler=schedule)
    return MochiPipeline(**text_parts(), **parts, force_zeros_for_empty_prompt=zeros)
