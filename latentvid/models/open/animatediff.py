"""Stable Diffusion's U-Net on the frames of clips, alone and with AnimateDiff's motion modules (Guo et al. 2024).

Axes: B samples of a batch, C latent channels, f h w of a latent, S text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel
from einops import rearrange
from torch import Tensor, nn

from ...errors import UserError
from ...limits import check_arguments
from ...text.policy import Reading
from ..building import check_memory
from ..saved import load_component
from .backbone import Conditions
from .recipe import Recipe
from .unet import UNet, ddpm_steps

MOTION = "motion_modules"  # in the names of their parameters
SCHEDULER = "scheduler"  # folder beside an adapter of ours: the noise that it was trained on


class StableDiffusion(UNet):
    """`UNet2DConditionModel` of Stable Diffusion 1.5's kind: each frame is a picture of its own."""

    family = "stable diffusion"

    def prepare(self) -> None:
        config = self.raw.config
        for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"):
            if config.get(key) is not None:
                raise UserError(
                    f"{type(self.raw).__name__} with {key}={config[key]} reads more than text, which is not supported: "
                    "take one of Stable Diffusion 1.5's kind"
                )

    def run(self, latents: Tensor, level: Tensor, text: Tensor, mask: Tensor | None, given: Conditions) -> Tensor:
        frames = latents.shape[2]
        pictures = rearrange(latents, "B C f h w -> (B f) C h w")
        level, text = (x.repeat_interleave(frames, dim=0) for x in (ddpm_steps(level), text))
        out = self.raw(pictures, level, text, return_dict=False)[0]
        return rearrange(out, "(B f) C h w -> B C f h w", f=frames)


class AnimateDiff(StableDiffusion):
    """`UNetMotionModel`: between the parts that see one frame, motion modules attend over the frames of a position."""

    family = "animatediff"
    apart_from_lora = MOTION  # in the names of layers that LoRA leaves as they are where none are named

    def run(self, latents: Tensor, level: Tensor, text: Tensor, mask: Tensor | None, given: Conditions) -> Tensor:
        frames = latents.shape[2]
        self.check_frames(frames)
        return self.raw(latents, ddpm_steps(level), text.repeat_interleave(frames, dim=0), return_dict=False)[0]

    @property
    def most_frames(self) -> int:
        return self.raw.config.motion_max_seq_length

    def save_motion(self, folder: Path) -> None:
        """The motion modules as a `MotionAdapter`'s folder, which diffusers' `AnimateDiffPipeline` takes."""
        config = self.raw.config
        adapter = MotionAdapter(
            block_out_channels=config.block_out_channels,
            motion_layers_per_block=config.layers_per_block,
            motion_transformer_layers_per_block=config.temporal_transformer_layers_per_block,
            motion_transformer_layers_per_mid_block=config.temporal_transformer_layers_per_mid_block,
            motion_num_attention_heads=config.motion_num_attention_heads,
            motion_norm_num_groups=config.norm_num_groups,
            motion_max_seq_length=config.motion_max_seq_length,
            use_motion_mid_block=config.use_motion_mid_block,
        )
        adapter.load_state_dict({name: x for name, x in self.raw.state_dict().items() if MOTION in name})
        adapter.save_pretrained(folder)


def with_motion(model: nn.Module, adapter: MotionAdapter) -> AnimateDiff:
    """An image model with the motion modules of an adapter; its weights are copied. Raises UserError where they do not
    fit each other."""
    if not isinstance(model, StableDiffusion):
        raise UserError(f"a MotionAdapter is of Stable Diffusion's U-Net, and this model is {type(model).__name__}")
    unet, config = model.raw, adapter.config
    if isinstance(unet, UNetMotionModel):
        raise UserError("this model has motion modules already: give the image model, StableDiffusionPipeline's folder")
    widths = tuple(config.block_out_channels), tuple(unet.config.block_out_channels)
    if widths[0] != widths[1]:
        raise UserError(f"the MotionAdapter is for levels of {widths[0]} channels, and the U-Net has {widths[1]}")
    if config.conv_in_channels:
        raise UserError("a MotionAdapter with an input layer of its own (PIA) is not supported: give AnimateDiff's")
    try:
        raw = UNetMotionModel.from_unet2d(unet, adapter)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the MotionAdapter does not fit this U-Net: {error}") from error
    made = AnimateDiff(raw.to(unet.device, unet.dtype).train(unet.training))
    made.strides, made.attention_backend = model.strides, model.attention_backend
    return made


def load_adapter(folder: Path) -> MotionAdapter:
    """Of a folder as diffusers writes and publishes it. Raises UserError."""
    return load_component(MotionAdapter, folder)


def new_adapter(model: nn.Module, asked: Mapping[str, Any]) -> MotionAdapter:
    """With new weights, of the U-Net's sizes and else as asked. What each module adds is 0 at first, so that each frame
    is as the image model makes it (Guo et al. 2024, section 4.2). Raises UserError."""
    if not isinstance(model, StableDiffusion):
        raise UserError(f"model.motion is of Stable Diffusion's U-Net, and this model is {type(model).__name__}")
    unet = model.raw
    told = {
        "block_out_channels": unet.config.block_out_channels,
        "motion_layers_per_block": unet.config.layers_per_block,
        "motion_norm_num_groups": unet.config.norm_num_groups,  # as diffusers' model has it, which says no other
    }
    if wrong := sorted(told.keys() & asked.keys()) or [key for key in ("conv_in_channels",) if asked.get(key)]:
        raise UserError(f"model.motion.{wrong[0]} is that of the U-Net: leave it out")
    check_arguments(MotionAdapter.__init__, asked, "model.motion")
    arguments = {**told, **asked}
    try:
        check_memory(MotionAdapter, arguments, "model.motion")
        adapter = MotionAdapter(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.motion: {error}") from None
    for name, parameter in adapter.named_parameters():
        if ".proj_out." in name:
            nn.init.zeros_(parameter)
    return adapter


def moving(recipe: Recipe) -> Recipe:
    """That of an image model, for clips by motion modules: AnimateDiff's noise, length and steps."""
    return replace(recipe, **LENGTH, scheduler={**recipe.scheduler, **NOISE})


def train_motion_alone(raw: nn.Module) -> None:
    for name, parameter in raw.named_parameters():
        parameter.requires_grad_(MOTION in name)


# Prompts as diffusers/pipelines/stable_diffusion reads them. Noise, length and rate of AnimateDiff are those of its
# training configuration (guoyww/AnimateDiff, configs/training/v1/training.yaml) and of diffusers' documentation.
SHARED = dict(
    scheduler={"path": "ddpm", "target": "eps", "betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    text=(Reading(tokens=77, cut=True, pad="encoded"),),
    height=512,
    width=512,
    fps=8.0,
    lora=UNet.lora,
)
NOISE = {"betas": "linear", "beta_start": 0.00085, "beta_end": 0.012, "spacing": "points", "lowest": 0.001}
LENGTH = {"frames": 16, "steps": 25}
RECIPES = {
    "StableDiffusionPipeline": Recipe(task="t2v", **SHARED, frames=1, steps=50, guidance=7.5),
    "AnimateDiffPipeline": Recipe(task="t2v", **SHARED, **LENGTH, guidance=7.5),
}
