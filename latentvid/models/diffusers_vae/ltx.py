"""The autoencoders of LTX-Video and LTX-2."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ...errors import UserError
from .adapter import DiffusersVae


class LTXVideoVae(DiffusersVae):
    """`AutoencoderKLLTXVideo`.

    Statistics as in diffusers/pipelines/ltx/pipeline_ltx.py: its two buffers and `scaling_factor`. A decoder that
    takes a time step decodes at 0, the pipeline's default; one with `decoder_inject_noise` draws from torch's
    generator.
    """

    def __init__(self, raw: ModelMixin) -> None:
        super().__init__(raw)
        if self.config.patch_size_t != 1:
            raise UserError(
                f"{type(raw).__name__} with patch_size_t {self.config.patch_size_t} cannot take 1 + k frames: only 1"
            )

    def _halvings(self, other: str) -> int:
        c = self.config
        older = [name == "LTXVideoDownBlock3D" for name in c.down_block_types]  # which know no downsample_type
        rows = zip(c.spatio_temporal_scaling, c.downsample_type, older, strict=False)
        return sum(bool(scales) and (old or kind != other) for scales, kind, old in rows)

    @property
    def temporal_stride(self) -> int:
        return 2 ** self._halvings(other="spatial")

    @property
    def spatial_stride(self) -> int:
        return self.config.patch_size * 2 ** self._halvings(other="temporal")

    def _shift_and_scale(self) -> tuple[Tensor, Tensor]:
        return self.raw.latents_mean, self.config.scaling_factor / self.raw.latents_std

    def set_statistics(self, mean: list[float], std: list[float]) -> None:
        self.raw.latents_mean.copy_(torch.tensor(mean))
        self.raw.latents_std.copy_(torch.tensor(std))
        self.raw.register_to_config(scaling_factor=1.0)

    def decode(self, z: Tensor) -> DecoderOutput:
        temb = torch.zeros(z.shape[0], device=z.device, dtype=z.dtype) if self.config.timestep_conditioning else None
        return self.raw.decode(z, temb)


class LTX2VideoVae(LTXVideoVae):
    """`AutoencoderKLLTX2Video`, the frames of LTX-2.

    Statistics as in diffusers/pipelines/ltx2/pipeline_ltx2.py. A decoder that mirrors at the borders needs two latent
    positions a side.
    """

    def latent_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        grid = super().latent_grid(frames, height, width)
        if min(grid[1:]) < 2 and self.config.decoder_spatial_padding_mode == "reflect":
            least = 2 * self.spatial_stride
            raise UserError(f"{height} x {width} pixels: the decoder mirrors at the borders, so give {least} at least")
        return grid
