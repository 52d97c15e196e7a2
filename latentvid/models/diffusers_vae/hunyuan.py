"""HunyuanVideo's autoencoder."""

from __future__ import annotations

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
