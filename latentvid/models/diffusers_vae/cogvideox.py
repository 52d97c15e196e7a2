"""CogVideoX's autoencoder."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from .adapter import DiffusersVae


class CogVideoXVae(DiffusersVae):
    """`AutoencoderKLCogVideoX`.

    Statistics as for the clips in diffusers/pipelines/cogvideo/pipeline_cogvideox_video2video.py: `scaling_factor`
    alone. (`invert_scale_latents` is about the condition image of one checkpoint; `shift_factor`, `latents_mean` and
    `latents_std` are read by none of its pipelines.)
    """

    @property
    def temporal_stride(self) -> int:
        return int(self.config.temporal_compression_ratio)

    @property
    def spatial_stride(self) -> int:
        return 2 ** (len(self.config.block_out_channels) - 1)

    def decode(self, z: Tensor) -> DecoderOutput:
        """As the class does, for any number of frames: an even one is one too few for it, which takes the first frame
        of an even count for `temporal_stride` frames; there the last latent frame is repeated, and its frames left
        out."""
        if z.shape[2] % 2:
            return self.raw.decode(z)
        out = self.raw.decode(torch.cat([z, z[:, :, -1:]], dim=2))
        return DecoderOutput(sample=out.sample[:, :, : -self.temporal_stride])
