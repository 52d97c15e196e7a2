"""No autoencoder: a clip's own pixels instead of latents, behind the interface of autoencoders.

Axes: B clips, F H W frames, height and width.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from .autoencoder import CausalVideoAutoencoder
from .saved import SavedModel

PIXELS = "pixels"  # what a configuration names instead of an autoencoder's folder


class PixelCodec(SavedModel, ModelMixin, ConfigMixin):
    """The latent of a clip is the clip: 3 channels in [-1,1], of its frames, height and width. It has nothing to train.
    Diffusion in pixels is that of Video Diffusion Models (Ho et al. 2022)."""

    temporal_stride = spatial_stride = 1
    latent_channels = 3

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(1))  # on its device, in its type; and a file of weights is not empty

    def latent_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return CausalVideoAutoencoder.latent_grid(self, frames, height, width)

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """Of clips [B,3,F,H,W] in [-1,1] themselves, without deviation."""
        return AutoencoderKLOutput(DiagonalGaussianDistribution(torch.cat([x, x], dim=1), deterministic=True))

    def decode(self, z: Tensor) -> DecoderOutput:
        return DecoderOutput(sample=z)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction, mean, log-variance), as of any autoencoder."""
        return x, x, torch.zeros_like(x)

    def normalise(self, z: Tensor) -> Tensor:
        return z

    def denormalise(self, z: Tensor) -> Tensor:
        return z
