"""Small random repositories of LTX-Video and LTX-2, written by diffusers' own pipelines."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from open_text import TEXT_WIDTH, text_parts, tokenizer
from text_models import gemma


def ltx(condition: bool = False) -> LTXPipeline | LTXConditionPipeline:
    """LTX-Video 0.9: strides 8 and 32 of the published ones, here 2 and 8. condition: as of 0.9.5."""
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, False, False, False),
        decoder_spatio_temporal_scaling=(True, False, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        downsample_type=("conv", "conv", "conv", "conv"),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        patch_size=4,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=TEXT_WIDTH,
    )
    if condition:
        schedule = FlowMatchEulerDiscreteScheduler()
        return LTXConditionPipeline(**text_parts(), vae=vae, scheduler=schedule, transformer=transformer)
    sizes = dict(base_image_seq_len=1024, max_image_seq_len=4096)
    schedule = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, **sizes, shift_terminal=0.1
    )
    return LTXPipeline(**text_parts(), vae=vae, scheduler=schedule, transformer=transformer)


def ltx2() -> LTX2Pipeline:
    """LTX-2.0, with its sound; strides 8 and 32 as published."""
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_block_out_channels=(8, 16, 32),
        decoder_layers_per_block=(1,) * 4,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    sound = AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    words = tokenizer()
    encoder = gemma(words)
    width, layers = encoder.config.text_config.hidden_size, encoder.config.text_config.num_hidden_layers
    small = dict(attention_head_dim=width // 2, num_attention_heads=2, num_layers=1, num_learnable_registers=8)
    sides = {f"{side}_connector_{name}": value for side in ("video", "audio") for name, value in small.items()}
    connectors = LTX2TextConnectors(width, layers + 1, **sides)
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=width,
    )
    sizes = dict(base_image_seq_len=1024, max_image_seq_len=4096)
    schedule = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, **sizes, shift_terminal=0.1
    )
    parts = dict(vae=vae, audio_vae=sound, vocoder=vocoder, transformer=transformer, scheduler=schedule)
    return LTX2Pipeline(tokenizer=words, text_encoder=encoder, connectors=connectors, **parts)
