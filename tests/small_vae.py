"""Small untrained autoencoders and clips for them."""

import torch
from torch import Tensor

from latentvid.models.autoencoder import CausalVideoAutoencoder

SMALL = dict(latent_channels=4, patch=2, widths=(8, 8, 16), time_strides=(2, 2), space_strides=(2, 1))


def vae(**changes) -> CausalVideoAutoencoder:
    """A small model whose zero-initialised branches are disturbed, so that every layer shows."""
    torch.manual_seed(1)
    model = CausalVideoAutoencoder(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def clip(frames: int, height: int = 8, width: int = 12, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, frames, height, width) * 2 - 1


def close(got: Tensor, want: Tensor) -> None:
    """Equal to 1e-5 of the values' size."""
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * max(1.0, want.abs().max().item()))
