"""Stable Video Diffusion (`UNetSpatioTemporalConditionModel`, Blattmann et al. 2023): an image to video.

The image acts by its latents, beside those of every frame, and by one state of CLIP in cross-attention. The rate,
motion and the noise in the image are numbers in the modulation (micro-conditions).

Axes: N samples, B samples of a batch, C latent channels, f h w of a latent, D width of the image's state.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from ...errors import UserError
from .backbone import Conditions, Inputs
from .recipe import Recipe
from .unet import UNet

# what the published pipeline asks for where nothing is said (diffusers/pipelines/stable_video_diffusion)
FPS, MOTION, NOISE = 7.0, 127.0, 0.02


class StableVideo(UNet):
    """It is told log(sigma) / 4, as the path edm tells it. Conditions: `image` [N,1,D] and `channels`; `motion`, from 0
    to 255 in its training, and `image_noise`, the deviation of the noise in the image's pixels."""

    family = "svd"
    reads_fps = True
    tells_motion = True
    takes = {"image": "encoder_hidden_states", "pooled": "added_time_ids"}

    def prepare(self) -> None:
        """The class's own pass."""

    @property
    def text_width(self) -> int:
        """Of `NoText`: it reads none."""
        return 1

    @property
    def image_width(self) -> int:
        width = self.raw.config.cross_attention_dim
        return width if isinstance(width, int) else width[0]

    def predict(self, inputs: Inputs) -> Tensor:
        given = inputs.given
        if given.image is None:
            raise UserError("this svd model makes videos from pictures alone: give it one, with inference/i2v.py")
        told = {"pooled": self._numbers(inputs.fps, given), "motion": None, "image_noise": None}
        return super().predict(replace(inputs, given=replace(given, **told)))

    def _numbers(self, fps: Tensor, given: Conditions) -> Tensor:
        """[N,3], in the order of the published pipeline: the rate less 1, motion, noise."""
        fps = torch.where(fps > 0, fps, FPS).float()
        motion = torch.full_like(fps, MOTION) if given.motion is None else given.motion.to(fps)
        noise = torch.full_like(fps, NOISE) if given.image_noise is None else given.image_noise.to(fps)
        return torch.stack([fps - 1.0, torch.where(motion < 0, MOTION, motion), noise], dim=1)

    def without(self, given: Conditions) -> Conditions:
        """Guidance leads away from what is made of no image: zeros."""
        zero = {name: torch.zeros_like(getattr(given, name)) for name in ("channels", "image")}
        return replace(given, **zero)

    def run(self, latents: Tensor, level: Tensor, text: Tensor, mask: Tensor | None, given: Conditions) -> Tensor:
        frames = rearrange(latents, "B C f h w -> B f C h w")
        told = {"encoder_hidden_states": given.image, "added_time_ids": given.pooled}
        out = self.raw(frames, level, return_dict=False, **told)[0]
        return rearrange(out, "B f C h w -> B C f h w")


RECIPES = {
    "StableVideoDiffusionPipeline": Recipe(
        task="i2v",
        # the schedule of a repository says the noise, which here is that of the published ones
        scheduler={
            "path": "edm", "target": "v", "spacing": "karras", "sigma_data": 1.0, "sigma_min": 0.002,
            "sigma_max": 700.0, "rho": 7.0,
        },
        timesteps={"kind": "log_normal", "mean": 0.7, "std": 1.6},
        text=(),
        image="svd",
        frames=14,
        height=576,
        width=1024,
        fps=FPS,
        steps=25,
        guidance=3.0,
        guidance_first=1.0,
        lora=("to_q", "to_k", "to_v", "to_out.0"),
    )
}  # fmt: skip
