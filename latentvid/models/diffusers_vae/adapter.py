"""What the adapters of diffusers' video autoencoders share.

Axes: B clips, F H W frames/height/width in pixels, C latent channels, f h w the latent's.

Slicing, tiling and caches stay the class's own business (through `.raw`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ...errors import UserError
from ..autoencoder import CausalVideoAutoencoder
from ..moving import moved_latents


class DiffusersVae(nn.Module):
    """A video VAE of diffusers behind the interface of `CausalVideoAutoencoder`; `raw` is diffusers' own module.

    Raises UserError for a configuration that cannot stand in (not 3 pixel channels, strides it cannot keep).
    """

    def __init__(self, raw: ModelMixin) -> None:
        super().__init__()
        self.raw = raw
        if self._pixel_channels() != 3:
            raise UserError(f"{type(raw).__name__} with {self._pixel_channels()} pixel channels: only RGB (3) is used")

    # --- what differs from class to class ---

    @property
    def temporal_stride(self) -> int:
        raise NotImplementedError

    @property
    def spatial_stride(self) -> int:
        raise NotImplementedError

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    def _pixel_channels(self) -> int:
        return self.config.in_channels

    def _shift_and_scale(self) -> tuple[Tensor, Tensor]:
        """(shift, scale), of C or one element: a latent is normalised by `(z - shift) * scale`."""
        return torch.zeros(1), torch.tensor([self.config.scaling_factor])

    def set_statistics(self, mean: list[float], std: list[float]) -> None:
        """Takes measured statistics of each channel into the configuration.

        A class with one scaling factor gets 1 over the standard deviation of all latent elements together (Rombach et
        al. 2022, section D.1).
        """
        m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        variance = (s.square() + m.square()).mean() - m.mean().square()
        self.raw.register_to_config(scaling_factor=1.0 / math.sqrt(float(variance)))

    def _moments(self, x: Tensor) -> Tensor:
        """Mean and log-variance [B,2C,f,h,w] in training, where no tiles are blended."""
        return self.raw.encode(x).latent_dist.parameters

    def _pixels(self, z: Tensor) -> Tensor:
        """Frames [B,3,F,H,W] in training: neither tiled nor clamped."""
        return self.decode(z).sample

    # --- what is the same ---

    @property
    def config(self) -> Mapping[str, Any]:
        return self.raw.config

    @property
    def encoder(self) -> nn.Module:
        return self.raw.encoder

    @property
    def decoder(self) -> nn.Module:
        return self.raw.decoder

    @property
    def device(self) -> torch.device:
        return self.raw.device

    @property
    def dtype(self) -> torch.dtype:
        return self.raw.dtype

    @property
    def _supports_gradient_checkpointing(self) -> bool:
        return self.raw._supports_gradient_checkpointing

    def enable_gradient_checkpointing(self) -> None:
        self.raw.enable_gradient_checkpointing()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes diffusers' format, under diffusers' class name."""
        self.raw.save_pretrained(folder)

    def latent_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(f, h, w) of the latent of a clip; raises UserError where the VAE cannot represent that size."""
        return CausalVideoAutoencoder.latent_grid(self, frames, height, width)

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """Posterior of clips [B,3,F,H,W] in [-1,1]; `.latent_dist` has `.mean`, `.std`, `.sample()`, [B,C,f,h,w].

        Raises UserError for sizes that the VAE cannot represent.
        """
        grid = self.latent_grid(*x.shape[2:])
        out = self.raw.encode(x)
        self._check(grid, out.latent_dist.mean)
        return out

    def decode(self, z: Tensor) -> DecoderOutput:
        """Clips of latents [B,C,f,h,w] (not normalised); `.sample` is [B,3,F,H,W], about [-1,1]."""
        return self.raw.decode(z)

    def forward(self, x: Tensor, noise: Tensor, move: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Training pass: (reconstruction [B,3,F,H,W], mean and log-variance [B,C,f,h,w]) with the given noise.

        move: as of ours, `CausalVideoAutoencoder.forward`.
        """
        grid = self.latent_grid(*x.shape[2:])
        moments = self._moments(x)
        mean, logvar = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, dim=1)
        self._check(grid, mean)
        logvar = logvar.clamp(-30.0, 20.0)
        z = mean + torch.exp(0.5 * logvar) * noise
        z = z if move is None else moved_latents(z, move, self.spatial_stride)
        return self._pixels(z), mean, logvar

    def normalise(self, z: Tensor) -> Tensor:
        """Latents [B,C,f,h,w] as the class's own pipelines in diffusers give them to their transformer."""
        shift, scale = self._like(z)
        return (z - shift) * scale

    def denormalise(self, z: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        shift, scale = self._like(z)
        return z / scale + shift

    def _like(self, z: Tensor) -> list[Tensor]:
        both = (values.to(z.device, z.dtype, non_blocking=True) for values in self._shift_and_scale())
        return [values[:, None, None, None] for values in both]

    def _check(self, grid: tuple[int, int, int], z: Tensor) -> None:
        if (*z.shape[1:],) != (self.latent_channels, *grid):
            raise UserError(
                f"{type(self.raw).__name__}: its config means latents of {[self.latent_channels, *grid]}, its network "
                f"makes {list(z.shape[1:])}: correct the compression ratios in the config"
            )
