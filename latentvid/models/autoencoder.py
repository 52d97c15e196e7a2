"""Causal 3D variational autoencoder for images and clips.

Axes: B clips, F H W frames/height/width in pixels, C latent channels, f h w the latent's.
`F = 1 + 4k` (with temporal stride 4): the first frame alone is an image, and latent frame j is a function of pixel
frames `0 .. 4j` only, decoded frames up to `4j` of latent frames `0 .. j` only.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn

from ..errors import UserError
from ..transfer import to_device
from ..words import counted
from .causal3d import (
    CausalConv3d,
    ChannelNorm,
    Downsample,
    ResBlock,
    StreamCache,
    Upsample,
    entering,
    leaving,
    resize_channels,
)
from .moving import moved_latents
from .saved import SavedModel
from .streaming import decode_side, encode_side, run

KERNELS = {
    "full": ((3, 3, 3), (3, 3, 3)),
    "factorised": ((3, 1, 1), (1, 3, 3)),
    "mixed": ((3, 3, 3), (1, 3, 3)),
}


class Encoder(nn.Module):
    """[B,3,F,H,W] -> mean and log-variance [B,2C,f,h,w]."""

    def __init__(
        self, channels: int, latent: int, patch: int, widths, depths, time_strides, space_strides, kernels, shortcuts
    ):
        super().__init__()
        self.patch, self.latent, self.shortcuts = patch, latent, shortcuts
        self.conv_in = CausalConv3d(channels * patch**2, widths[0])
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            self.stages.extend(ResBlock(width, kernels) for _ in range(depth))
            if i + 1 < len(widths):
                self.stages.append(Downsample(width, widths[i + 1], time_strides[i], space_strides[i], shortcuts))
        self.norm = ChannelNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 2 * latent)

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        x = rearrange(entering(x), "B C F (h p) (w q) -> B (C p q) F h w", p=self.patch, q=self.patch)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        x = _resized(self, self.conv_in(x, cache), x)
        for stage in self.stages:
            x = stage(x, cache)
        mean, logvar = leaving(self.conv_out(self.norm(x), cache)).chunk(2, dim=1)
        return torch.cat([_resized(self, mean, x), logvar], dim=1)


class Decoder(nn.Module):
    """Latent [B,C,f,h,w] -> [B,3,F,H,W]."""

    def __init__(
        self, channels: int, latent: int, patch: int, widths, depths, time_strides, space_strides, kernels, shortcuts
    ):
        super().__init__()
        self.patch, self.shortcuts = patch, shortcuts
        self.conv_in = CausalConv3d(latent, widths[-1])
        self.stages = nn.ModuleList()
        for i in reversed(range(len(widths))):
            self.stages.extend(ResBlock(widths[i], kernels) for _ in range(depths[i]))
            if i > 0:
                strides = time_strides[i - 1], space_strides[i - 1]
                self.stages.append(Upsample(widths[i], widths[i - 1], *strides, shortcuts))
        self.norm = ChannelNorm(widths[0])
        self.conv_out = CausalConv3d(widths[0], channels * patch**2)

    def forward(self, z: Tensor, cache: StreamCache) -> Tensor:
        z = entering(z).contiguous(memory_format=torch.channels_last_3d)
        x = _resized(self, self.conv_in(z, cache), z)
        for stage in self.stages:
            x = stage(x, cache)
        x = _resized(self, leaving(self.conv_out(self.norm(x), cache)), x)
        return rearrange(x, "B (C p q) F h w -> B C F (h p) (w q)", p=self.patch, q=self.patch)


def _resized(part: Encoder | Decoder, y: Tensor, x: Tensor) -> Tensor:
    """y, what a convolution made of x, with the shortcut around it if the part has such."""
    return y + resize_channels(x, y.shape[1]) if part.shortcuts else y


class CausalVideoAutoencoder(SavedModel, ModelMixin, ConfigMixin):
    """Causal 3D VAE: a patchify stem, residual stages of causal convolutions, and a Gaussian latent.

    Args:
        in_channels: of the pixels; 3, as all clips are RGB.
        latent_channels: C of the latent.
        patch: the stem folds patch x patch pixels into channels.
        widths: channels of each level.
        time_strides, space_strides: by which each level follows the one before: one entry less than widths.
        encoder_depths, decoder_depths: residual blocks of each level.
        kernels: "full" (3x3x3 twice), "factorised" (3x1x1 then 1x3x3) or "mixed" (3x3x3 then 1x3x3).
        shortcuts: every change of width, from pixels to latent and back, has one without parameters. Then it learns to
            reconstruct faster, but a small transformer learns worse from its latents (docs/vae.md).
        latents_mean, latents_std: per-channel statistics of the latents; `normalise` uses them. They are measured
            after training and travel in the config.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 8,
        patch: int = 2,
        widths: tuple[int, ...] = (64, 128, 128),
        encoder_depths: tuple[int, ...] = (1, 1, 1),
        decoder_depths: tuple[int, ...] = (1, 1, 1),
        time_strides: tuple[int, ...] = (2, 2),
        space_strides: tuple[int, ...] = (2, 1),
        kernels: str = "mixed",
        shortcuts: bool = True,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        levels = {len(widths), len(encoder_depths), len(decoder_depths), len(time_strides) + 1, len(space_strides) + 1}
        if len(levels) != 1:
            raise ValueError(
                "widths, encoder_depths and decoder_depths need one entry a level, time_strides and space_strides one "
                f"less; got {len(widths)}, {len(encoder_depths)}, {len(decoder_depths)}, {len(time_strides)}, "
                f"{len(space_strides)}"
            )
        if kernels not in KERNELS:
            raise ValueError(f"kernels={kernels!r}: one of {', '.join(KERNELS)}")
        self.temporal_stride = math.prod(time_strides)
        self.spatial_stride = patch * math.prod(space_strides)
        self.latent_channels = latent_channels
        shape = (in_channels, latent_channels, patch, tuple(widths))
        strides = (tuple(time_strides), tuple(space_strides), KERNELS[kernels], shortcuts)
        self.encoder = Encoder(*shape, tuple(encoder_depths), *strides)
        self.decoder = Decoder(*shape, tuple(decoder_depths), *strides)
        self.initialise()

    def initialise(self) -> None:
        """Fan-in scaled convolutions; residual branches start at zero, and so do the last convolutions where there are
        shortcuts to carry the signal first."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, Encoder | Decoder) and module.shortcuts:
                nn.init.zeros_(module.conv_out.weight)

    def latent_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(f, h, w) of the latent of a clip; raises UserError where the VAE cannot represent that size."""
        s, t = self.spatial_stride, self.temporal_stride
        if frames < 1 or (frames - 1) % t:
            below = 1 + max(frames - 1, 0) // t * t
            raise UserError(
                f"{counted(frames, 'frame')}: this VAE takes 1 + {t}k frames, such as {below} or {below + t}"
            )
        if height < s or width < s or height % s or width % s:
            near = " x ".join(str(max(s, round(side / s) * s)) for side in (height, width))
            raise UserError(f"{height} x {width} pixels: this VAE takes multiples of {s}, such as {near}")
        return 1 + (frames - 1) // t, height // s, width // s

    @apply_forward_hook
    def encode(self, x: Tensor, budget: int | None = None) -> AutoencoderKLOutput:
        """Posterior of clips x [B,3,F,H,W] in [-1,1]: `.latent_dist` has `.mean`, `.sample(generator)`, [B,C,f,h,w].

        Long clips pass in chunks, which changes nothing; frames too large for the budget in tiles, which changes a
        little (`streaming.py`).

        Args:
            budget: bytes that this may take beside x and the result; by default a share of the free memory. What
                autograd keeps, where gradients are on, comes on top.

        Raises UserError for sizes that the VAE cannot represent, and where the smallest tile does not fit the budget.
        """
        self.latent_grid(*x.shape[2:])
        moments = run(encode_side(self), x, budget)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    @apply_forward_hook
    def decode(self, z: Tensor, budget: int | None = None) -> DecoderOutput:
        """Clips of latents z [B,C,f,h,w] (not normalised): `.sample` is [B,3,F,H,W], about [-1,1], not clamped.

        `budget` and errors as in `encode`.
        """
        return DecoderOutput(sample=run(decode_side(self), z, budget))

    def forward(self, x: Tensor, noise: Tensor, move: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Training pass: (reconstruction [B,3,F,H,W], mean and log-variance [B,C,f,h,w]) with the given noise.

        move: int64 [B,2], pixels down and to the right by which each clip's latent is moved before it is decoded.
        """
        mean, logvar = self.encoder(x, StreamCache(more=False)).float().chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
        z = mean + torch.exp(0.5 * logvar) * noise
        z = z if move is None else moved_latents(z, move, self.spatial_stride)
        return self.decoder(z, StreamCache(more=False)), mean, logvar

    def normalise(self, z: Tensor) -> Tensor:
        """Latents [B,C,f,h,w] to mean 0, standard deviation 1 in each channel, by the statistics in the config."""
        mean, std = self._statistics(z)
        return (z - mean) / std

    def denormalise(self, z: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        mean, std = self._statistics(z)
        return z * std + mean

    def set_statistics(self, mean: list[float], std: list[float]) -> None:
        """Takes measured statistics of each channel into the config."""
        self.register_to_config(latents_mean=mean, latents_std=std)

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        c = self.config
        if c.latents_mean is None or c.latents_std is None:
            raise UserError(
                "this VAE's config has no latents_mean and latents_std: finish its training, which adds them"
            )
        mean, std = (to_device(values, z.device, z.dtype) for values in (c.latents_mean, c.latents_std))
        return mean[:, None, None, None], std[:, None, None, None]
