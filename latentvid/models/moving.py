"""Clips and latents moved in the picture, for an autoencoder whose latents move with what they show."""

from __future__ import annotations

import torch
from torch import Tensor


def moved_pixels(x: Tensor, move: Tensor) -> Tensor:
    """Clips [B,C,F,H,W] moved down and to the right by move, int64 [B,2], pixels of each; the edges are repeated."""
    for axis, by in ((3, move[:, 0]), (4, move[:, 1])):
        n = x.shape[axis]
        source = (torch.arange(n, device=x.device) - by[:, None]).clamp(0, n - 1)  # [B,n]
        shape = [len(x), *(n if i == axis else 1 for i in range(1, 5))]
        x = x.gather(axis, source.view(shape).expand(x.shape))
    return x


def moved_latents(z: Tensor, move: Tensor, stride: int) -> Tensor:
    """Latents [B,C,f,h,w], float32, moved by as much: by move / stride latent positions.

    What falls between two positions is their mean, weighted by how near they are (linear interpolation). As products
    with small matrices, whose gradients are the same each time on any device.
    """
    with torch.autocast(z.device.type, enabled=False):
        down, right = (_between(z.shape[axis], move[:, k] / stride).to(z) for axis, k in ((3, 0), (4, 1)))
        return down[:, None, None] @ z @ right.mT[:, None, None]


def _between(n: int, by: Tensor) -> Tensor:
    """[B,n,n]: row i of clip b weighs the positions that make up position i - by[b]."""
    source = (torch.arange(n, device=by.device) - by[:, None]).clamp(0, n - 1)  # [B,n]
    away = (source[:, :, None] - torch.arange(n, device=by.device)).abs()
    return (1 - away).clamp_min(0)
