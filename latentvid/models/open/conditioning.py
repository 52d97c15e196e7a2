"""How published image-to-video models are given an image: one function a step, shared by training and sampling.

Axes: C latent channels, F H W frames, height and width in pixels, f h w the latent's. Latents are normalised. Further
channels come after the noised ones, in this order.

    kind        given as                                            source (diffusers/pipelines)
    first       the first latent frame at noise level 0             wan (expand_timesteps), ltx, hunyuan_video
    wan         mask of each frame, latents of image and zeros      wan/pipeline_wan_i2v.py
    cogvideox   latents of the image, then zeros                    cogvideo/pipeline_cogvideox_image2video.py
    concat      latents of the image, then zeros; mask              hunyuan_video (latent_concat), hunyuan_video1_5
    svd         latents of the image for every frame, not scaled    stable_video_diffusion
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...packing import Grid
from ...rng import generator
from ..diffusers_vae import CogVideoXVae
from ..interchange import Vae
from .recipe import ImageKind


def pixels_to_encode(kind: ImageKind, image: Tensor, frames: int, last: Tensor | None = None) -> Tensor:
    """[3,H,W] in [-1,1] -> [3,F,H,W], what the VAE makes the condition of. last: the last frame too, of `wan` alone."""
    if kind != "wan":
        return image[:, None]
    clip = image.new_zeros(3, frames, *image.shape[1:])
    clip[:, 0] = image
    if last is not None:
        clip[:, -1] = last
    return clip


def drawn_deviation(source: torch.Generator) -> Tensor:
    """Of the noise in an image in training: exp(N(-3, 0.5^2)) (Blattmann et al. 2023; Yang et al. 2024)."""
    return torch.exp(-3.0 + 0.5 * torch.randn((), generator=source))


def noised_image(image: Tensor, generator: torch.Generator) -> Tensor:
    """What CogVideoX and Stable Video Diffusion see of the image in training."""
    sigma = drawn_deviation(generator)
    return image + sigma * torch.randn(image.shape, generator=generator).to(image)


def with_noise(image: Tensor, deviation: float, seed: int) -> Tensor:
    """What Stable Video Diffusion sees of the image [3,H,W] in sampling."""
    noise = torch.randn(image.shape, generator=generator(seed, 0, "image-noise"))
    return image + deviation * noise.to(image) if deviation else image


def encode_condition(kind: ImageKind, vae: Vae, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
    """Pixels [3,F,H,W] -> latents [C,f,h,w]: the posterior's mean, or with noise [C,f,h,w] a draw (CogVideoX).

    The image of CogVideoX 5b I2V was divided by the scaling factor, by which the clip's latents are multiplied.
    """
    posterior = vae.encode(pixels[None].to(vae.device, vae.dtype)).latent_dist
    z = posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)[None]
    if kind == "cogvideox" and isinstance(vae, CogVideoXVae) and vae.config.invert_scale_latents:
        return z[0] / vae.config.scaling_factor
    return z[0] if kind == "svd" else vae.normalise(z)[0]


def condition_channels(
    kind: ImageKind, latents: Tensor | None, grid: Grid, *, channels: int, stride: int = 4, given: Sequence[int] = (0,)
) -> Tensor:
    """Further channels [C',f,h,w] of a sample of latent grid (f,h,w), by latents of the image [C,f',h,w].

    latents: None is no image, of `concat` alone: text to video by a model that takes images too.
    channels: C. stride: frames of a latent frame after the first, the channels of Wan's mask. given: the numbers of
    the pixel frames that are given.
    """
    if latents is None:
        if kind != "concat":
            raise ValueError(f"a model of kind {kind} is never without an image")
        return torch.zeros(channels + 1, *grid)
    if kind == "svd":
        return latents[:, :1].expand(-1, grid[0], -1, -1)
    if kind == "wan":
        return torch.cat([frame_mask(grid, stride, given).to(latents), latents])
    filled = latents.new_zeros(channels, *grid)
    filled[:, 0] = latents[:, 0]
    if kind == "cogvideox":
        return filled
    mask = latents.new_zeros(1, *grid)
    mask[:, 0] = 1.0
    return torch.cat([filled, mask])


def frame_mask(grid: Grid, stride: int, given: Sequence[int]) -> Tensor:
    """Which pixel frames are given, a channel for each of a latent frame's: [stride,f,h,w]; the first latent frame is
    one pixel frame, in all of them."""
    f, h, w = grid
    mask = torch.zeros(1 + (f - 1) * stride)
    mask[list(given)] = 1.0
    mask = torch.cat([mask[:1].expand(stride), mask[1:]]).reshape(f, stride).T
    return mask[:, :, None, None].expand(stride, f, h, w).clone()
