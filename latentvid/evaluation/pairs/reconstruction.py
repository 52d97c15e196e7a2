"""How well an autoencoder gives clips back.

Axes: F frames, H W height and width in pixels; a video is float [3,F,H,W] in [-1,1].
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...data.transforms import to_uint8
from ...errors import UserError
from ...models.interchange import Vae
from .fidelity import Fidelity


@torch.no_grad()
def reconstruct(vae: Vae, video: Tensor) -> Tensor:
    """Encodes (the posterior's mode) and decodes [3,F,H,W] in [-1,1]: float32 on the CPU, clamped to [-1,1].

    Raises UserError for shapes that the VAE cannot represent.
    """
    z = vae.encode(video[None].to(vae.device, vae.dtype)).latent_dist.mode()
    return vae.decode(z).sample[0].float().clamp(-1, 1).cpu()


def evaluate(vae: Vae, videos: Iterable[Tensor]) -> dict:
    """Reconstructs videos [3,F,H,W] in [-1,1] and compares them in 8 bits.

    Returns `per_clip` (a list of (PSNR in dB, SSIM)), their means `psnr` and `ssim`, and `count`.
    Raises UserError where there is no video.
    """
    per_clip = []
    for video in videos:
        fidelity = Fidelity()
        fidelity.add(to_uint8(video), to_uint8(reconstruct(vae, video)))
        per_clip.append((fidelity.psnr, fidelity.ssim))
    if not per_clip:
        raise UserError("there is no clip to reconstruct: give at least one")
    count = len(per_clip)
    means = [sum(values) / count for values in zip(*per_clip, strict=True)]
    return {"psnr": means[0], "ssim": means[1], "count": count, "per_clip": per_clip}
