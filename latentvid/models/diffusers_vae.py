"""diffusers' video autoencoders behind the interface of ours: one adapter a class.

Axes: B clips, F H W frames/height/width in pixels, C latent channels, f h w the latent's.

Slicing, tiling and caches stay the class's own business (through `.raw`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, unpatchify
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..errors import UserError
from .autoencoder import CausalVideoAutoencoder


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

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training pass: (reconstruction [B,3,F,H,W], mean and log-variance [B,C,f,h,w]) with the given noise."""
        grid = self.latent_grid(*x.shape[2:])
        moments = self._moments(x)
        mean, logvar = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, dim=1)
        self._check(grid, mean)
        logvar = logvar.clamp(-30.0, 20.0)
        z = mean + torch.exp(0.5 * logvar) * noise
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
        return [values.to(z.device, z.dtype)[:, None, None, None] for values in self._shift_and_scale()]

    def _check(self, grid: tuple[int, int, int], z: Tensor) -> None:
        if (*z.shape[1:],) != (self.latent_channels, *grid):
            raise UserError(
                f"{type(self.raw).__name__}: its config means latents of {[self.latent_channels, *grid]}, its network "
                f"makes {list(z.shape[1:])}: correct the compression ratios in the config"
            )


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


class LTXVideoVae(DiffusersVae):
    """`AutoencoderKLLTXVideo`.

    Statistics as in diffusers/pipelines/ltx/pipeline_ltx.py: its two buffers and `scaling_factor`. A decoder that
    takes a time step decodes at 0, the pipeline's default; one with `decoder_inject_noise` draws from torch's
    generator.
    """

    def __init__(self, raw: AutoencoderKLLTXVideo) -> None:
        super().__init__(raw)
        if self.config.patch_size_t != 1:
            raise UserError(
                f"AutoencoderKLLTXVideo with patch_size_t {self.config.patch_size_t} cannot take 1 + k frames: only 1"
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
