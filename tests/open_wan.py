"""Small random repositories of Wan 2.1 and 2.2, written by diffusers' own pipelines."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from open_text import TEXT_WIDTH, text_parts
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel


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
