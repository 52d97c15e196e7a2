"""Stable Diffusion's autoencoder of pictures, a frame at a time."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from einops import rearrange
from torch import Tensor

from .adapter import DiffusersVae

FRAMES = 16  # that pass together, as in diffusers/pipelines/animatediff/pipeline_animatediff.py


class ImageVae(DiffusersVae):
    """`AutoencoderKL`: each frame is a picture of its own, so that a latent frame is one frame."""

    @property
    def temporal_stride(self) -> int:
        return 1

    @property
    def spatial_stride(self) -> int:
        return 2 ** (len(self.config.block_out_channels) - 1)

    def _shift_and_scale(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([self.config.shift_factor or 0.0]), torch.tensor([self.config.scaling_factor])

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        grid = self.latent_grid(*x.shape[2:])
        posterior = DiagonalGaussianDistribution(self._moments(x))
        self._check(grid, posterior.mean)
        return AutoencoderKLOutput(posterior)

    def decode(self, z: Tensor) -> DecoderOutput:
        frames = rearrange(z, "B C f h w -> (B f) C h w")
        pixels = torch.cat([self.raw.decode(part).sample for part in frames.split(FRAMES)])
        return DecoderOutput(rearrange(pixels, "(B f) C h w -> B C f h w", B=len(z)))

    def _moments(self, x: Tensor) -> Tensor:
        frames = rearrange(x, "B C F H W -> (B F) C H W")
        moments = torch.cat([self.raw.encode(part).latent_dist.parameters for part in frames.split(FRAMES)])
        return rearrange(moments, "(B F) C h w -> B C F h w", B=len(x))
