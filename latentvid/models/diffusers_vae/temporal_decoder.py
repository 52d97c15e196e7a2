"""Stable Video Diffusion's autoencoder: an image's encoder, and a decoder that knows of the frames beside each.

Axes: B clips, F H W frames/height/width in pixels, C latent channels, f h w the latent's; f is F.
"""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from einops import rearrange
from torch import Tensor

from .adapter import DiffusersVae

TOGETHER = 8  # frames that are encoded at a time where no gradient is taken


class TemporalDecoderVae(DiffusersVae):
    """`AutoencoderKLTemporalDecoder`, normalised as in diffusers/pipelines/stable_video_diffusion: `scaling_factor`
    alone. All frames of a clip are decoded together."""

    temporal_stride = 1

    @property
    def spatial_stride(self) -> int:
        return 2 ** (len(self.config.block_out_channels) - 1)

    def _moments(self, x: Tensor) -> Tensor:
        frames = rearrange(x, "B C F H W -> (B F) C H W")
        pieces = [frames] if torch.is_grad_enabled() else frames.split(TOGETHER)
        moments = torch.cat([self.raw.encode(piece).latent_dist.parameters for piece in pieces])
        return rearrange(moments, "(B F) C h w -> B C F h w", B=len(x))

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        grid = self.latent_grid(*x.shape[2:])
        posterior = DiagonalGaussianDistribution(self._moments(x))
        self._check(grid, posterior.mean)
        return AutoencoderKLOutput(latent_dist=posterior)

    def decode(self, z: Tensor) -> DecoderOutput:
        frames = self.raw.decode(rearrange(z, "B C f h w -> (B f) C h w"), num_frames=z.shape[2]).sample
        return DecoderOutput(sample=rearrange(frames, "(B f) C H W -> B C f H W", B=len(z)))
