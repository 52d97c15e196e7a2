"""Small random repositories of published models, written by diffusers' own pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_hunyuan
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from open_models import lively
from text_models import gemma
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from latentvid.demo.digits import prompts
from latentvid.demo.text_encoder import build_tokenizer

TEXT_WIDTH = 16


def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer([text for _, text in prompts(100, heldout=False, seed=0)], vocab_size=400)


def text_encoder(kind: str = "t5") -> nn.Module:
    config, cls = (UMT5Config, UMT5EncoderModel) if kind == "umt5" else (T5Config, T5EncoderModel)
    sizes = dict(d_model=TEXT_WIDTH, d_kv=4, d_ff=32, num_layers=1, num_heads=4, dropout_rate=0.0)
    return cls(config(vocab_size=400, **sizes, feed_forward_proj="gated-gelu")).eval()


def text_parts(kind: str = "t5") -> dict[str, Any]:
    return {"tokenizer": tokenizer(), "text_encoder": text_encoder(kind)}


def wan_vae(channels: int = 4, patch: int | None = None) -> AutoencoderKLWan:
    """Strides 4 and 8, of which a patch is a part."""
    more = {} if patch is None else {"patch_size": patch, "in_channels": 3 * patch**2, "out_channels": 3 * patch**2}
    halvings = [False, True, True] if patch is None else [True, True]
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1] * (len(halvings) + 1),
        num_res_blocks=1,
        temperal_downsample=halvings,
        latents_mean=[0.1, -0.1, 0.0, 0.2][:channels],
        latents_std=[1.0, 0.8, 1.2, 0.9][:channels],
        **more,
    )


def wan_transformer(inputs: int = 4, **more: Any) -> WanTransformer3DModel:
    sizes = dict(num_attention_heads=2, attention_head_dim=12, ffn_dim=32, num_layers=2, freq_dim=32)
    return WanTransformer3DModel(**sizes, text_dim=TEXT_WIDTH, in_channels=inputs, out_channels=4, **more)


def wan_schedule(shift: float = 3.0) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def wan() -> WanPipeline:
    """Wan 2.1, text to video."""
    return WanPipeline(**text_parts("umt5"), vae=wan_vae(), scheduler=wan_schedule(), transformer=wan_transformer())


def wan_experts() -> WanPipeline:
    """Wan 2.2 A14B, text to video: two transformers by noise level."""
    return WanPipeline(
        **text_parts("umt5"),
        vae=wan_vae(),
        scheduler=wan_schedule(12.0),
        transformer=wan_transformer(),
        transformer_2=wan_transformer(),
        boundary_ratio=0.875,
    )


def wan_small() -> WanPipeline:
    """Wan 2.2 5B: a level each frame, an autoencoder with patches."""
    return WanPipeline(
        **text_parts("umt5"),
        vae=wan_vae(patch=2),
        scheduler=wan_schedule(5.0),
        transformer=wan_transformer(),
        expand_timesteps=True,
    )


def wan_image() -> WanImageToVideoPipeline:
    """Wan 2.2 A14B, image to video (one of the two experts): mask and latents of the image are further channels."""
    return WanImageToVideoPipeline(
        **text_parts("umt5"),
        vae=wan_vae(),
        scheduler=wan_schedule(5.0),
        transformer=wan_transformer(inputs=4 + 4 + 4),
        transformer_2=wan_transformer(inputs=4 + 4 + 4),
        image_encoder=None,
        image_processor=None,
        boundary_ratio=0.9,
    )


def clip_vision() -> dict[str, Any]:
    """5 tokens of width 8 for a picture."""
    sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    encoder = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=14, patch_size=7))
    side = {"height": 14, "width": 14}
    return {"image_encoder": encoder, "image_processor": CLIPImageProcessor(size={"shortest_edge": 14}, crop_size=side)}


def wan_clip(ends: bool = False) -> WanImageToVideoPipeline:
    """Wan 2.1, image to video: CLIP tokens too; `ends`: of the first and the last picture."""
    images = dict(image_dim=8, added_kv_proj_dim=24, pos_embed_seq_len=10 if ends else None)
    return WanImageToVideoPipeline(
        **text_parts("umt5"),
        **clip_vision(),
        vae=wan_vae(),
        scheduler=wan_schedule(),
        transformer=wan_transformer(4 + 4 + 4, **images),
    )


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


REPOSITORIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "wan": wan,
    "wan_experts": wan_experts,
    "wan_small": wan_small,
    "wan_image": wan_image,
    "wan_clip": wan_clip,
    "wan_ends": lambda: wan_clip(ends=True),
    "ltx": ltx,
    "ltx_condition": lambda: ltx(condition=True),
    "ltx2": ltx2,
    "cogvideox": cogvideox,
    "cogvideox_image": cogvideox_image,
    "cogvideox_newer": cogvideox_newer,
    "cogvideox_newer_image": lambda: cogvideox_image(patch_size_t=2, ofs_embed_dim=16),
    "mochi": mochi,
    "mochi_zeros": lambda: mochi(zeros=True),
    "hunyuan": open_hunyuan.video,
    "hunyuan15": open_hunyuan.video15,
    "hunyuan15_image": open_hunyuan.image15,
}


def write_repository(folder: Path, kind: str) -> Path:
    """The repository as a hub has it; every weight of the transformers counts. The same in every session."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = REPOSITORIES[kind]()
        for name in ("transformer", "transformer_2"):
            if getattr(pipeline, name, None) is not None:
                lively(getattr(pipeline, name))
        if getattr(pipeline, "transformer_2", None) is not None:
            with torch.no_grad():
                for p in pipeline.transformer_2.parameters():
                    p.mul_(0.9)
    pipeline.save_pretrained(folder)
    return folder
