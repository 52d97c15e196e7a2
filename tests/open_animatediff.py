"""Small random repositories of Stable Diffusion and of ModelScope's text to video, and a motion adapter of the first's
sizes."""

from __future__ import annotations

from typing import Any

import text_models as small
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from open_models import lively

SIZES = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12)
DDIM = dict(beta_start=0.00085, beta_end=0.012, clip_sample=False, timestep_spacing="trailing")


def parts(beta_schedule: str = "scaled_linear") -> dict[str, Any]:
    tokenizer = small.clip_tokenizer()
    tokenizer.model_max_length = 77
    return {
        "vae": AutoencoderKL(
            block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        ),
        "text_encoder": small.clip(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(**DDIM, beta_schedule=beta_schedule),
    }  # fmt: skip


def stable_diffusion() -> StableDiffusionPipeline:
    unet = UNet2DConditionModel(
        **SIZES, attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), sample_size=8,
    )  # fmt: skip
    of_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(unet=unet, **parts(), **of_checker)


def modelscope() -> TextToVideoSDPipeline:
    unet = UNet3DConditionModel(
        **SIZES, attention_head_dim=2, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), sample_size=8,
    )  # fmt: skip
    return TextToVideoSDPipeline(unet=unet, **parts())


def adapter() -> MotionAdapter:
    torch.manual_seed(5)
    return lively(
        MotionAdapter(
            block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4,
            motion_num_attention_heads=2, motion_max_seq_length=8,
        )
    )  # fmt: skip
