"""The autoencoders of HunyuanVideo and of HunyuanVideo 1.5."""

from __future__ import annotations

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from .adapter import DiffusersVae


class HunyuanVideoVae(DiffusersVae):
    """`AutoencoderKLHunyuanVideo`.

    Statistics as in diffusers/pipelines/hunyuan_video/pipeline_hunyuan_video.py. Clips above 16 frames it encodes and
    decodes in overlapping tiles of time; in training the clip is one.
    """

    @property
    def temporal_stride(self) -> int:
        return self.config.temporal_compression_ratio

    @property
    def spatial_stride(self) -> int:
        return self.config.spatial_compression_ratio

    def _moments(self, x: Tensor) -> Tensor:
        return self.raw.quant_conv(self.raw.encoder(x))

    def _pixels(self, z: Tensor) -> Tensor:
        return self.raw.decoder(self.raw.post_quant_conv(z))


class HunyuanVideo15Vae(HunyuanVideoVae):
    """`AutoencoderKLHunyuanVideo15`, which takes a batch clip by clip: the mask of its attention fits one alone.

    Statistics as in diffusers/pipelines/hunyuan_video1_5/pipeline_hunyuan_video1_5.py.
    """

    def __init__(self, raw: ModelMixin) -> None:
        super().__init__(raw)
        raw.enable_slicing()

    def _moments(self, x: Tensor) -> Tensor:
        return torch.cat([self.raw.encoder(clip) for clip in x.split(1)])

    def _pixels(self, z: Tensor) -> Tensor:
        return torch.cat([self.raw.decoder(latent) for latent in z.split(1)])
