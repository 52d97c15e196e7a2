"""Wan's autoencoders."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, unpatchify
from torch import Tensor

from ...errors import UserError
from .adapter import DiffusersVae


class WanVae(DiffusersVae):
    """`AutoencoderKLWan` of Wan 2.1, and of Wan 2.2 (`is_residual`, `patch_size`).

    Statistics as in diffusers/pipelines/wan/pipeline_wan.py. Its cache holds tensors of the same graph, so that
    gradients pass through the chunks it works in.
    """

    def __init__(self, raw: AutoencoderKLWan) -> None:
        super().__init__(raw)
        if self.temporal_stride != 4:
            raise UserError(
                f"AutoencoderKLWan with a temporal stride of {self.temporal_stride}: it encodes 4 frames at a time and "
                "works with 4 only; set temperal_downsample to two true and the rest false"
            )

    @property
    def temporal_stride(self) -> int:
        return 2 ** sum(self.config.temperal_downsample[: len(self.config.dim_mult) - 1])

    @property
    def spatial_stride(self) -> int:
        return (self.config.patch_size or 1) * 2 ** (len(self.config.dim_mult) - 1)

    @property
    def latent_channels(self) -> int:
        return self.config.z_dim

    def _pixel_channels(self) -> int:
        return self.config.in_channels // (self.config.patch_size or 1) ** 2

    def _shift_and_scale(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.config.latents_mean), 1.0 / torch.tensor(self.config.latents_std)

    def set_statistics(self, mean: list[float], std: list[float]) -> None:
        self.raw.register_to_config(latents_mean=list(mean), latents_std=list(std))

    def _pixels(self, z: Tensor) -> Tensor:
        """`AutoencoderKLWan._decode` without its clamp, beyond which no gradient would flow."""
        raw, parts = self.raw, []
        raw.clear_cache()
        z = raw.post_quant_conv(z)
        for i in range(z.shape[2]):
            raw._conv_idx = [0]
            parts.append(
                raw.decoder(z[:, :, i : i + 1], feat_cache=raw._feat_map, feat_idx=raw._conv_idx, first_chunk=i == 0)
            )
        raw.clear_cache()
        x = torch.cat(parts, dim=2)
        if self.config.patch_size is not None:
            x = unpatchify(x, patch_size=self.config.patch_size)
        if z.shape[2] > 1 or not torch.is_grad_enabled():
            return x
        # images leave out the convolutions over time; DDP and the optimiser want a gradient, of zero, of each weight
        idle = [p for name, p in raw.named_parameters() if ".time_conv." in name]
        return x + 0.0 * torch.stack([p.sum() for p in idle]).sum()
