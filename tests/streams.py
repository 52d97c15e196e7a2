"""Small causal autoencoders of every architecture, and what goes through them."""

import functools

import pytest
import torch
from small_vae import clip, vae
from torch import Tensor

from latentvid.models import streaming
from latentvid.models.autoencoder import KERNELS, CausalVideoAutoencoder
from latentvid.models.budget import Cut
from latentvid.models.causal3d import StreamCache

ONE_LEVEL = dict(widths=(8,), encoder_depths=(1,), decoder_depths=(1,), time_strides=(), space_strides=())


ARCHITECTURES = {
    **{kernels: dict(kernels=kernels) for kernels in KERNELS},
    "no shortcuts": dict(shortcuts=False),
    "patch 1": dict(patch=1, time_strides=(1, 2), space_strides=(2, 2)),
    "patch 4, time first": dict(patch=4, widths=(16, 8), encoder_depths=(1, 1), decoder_depths=(2, 1))
    | dict(time_strides=(4,), space_strides=(1,)),
    "8 frames": dict(widths=(8, 8, 8, 16), encoder_depths=(1,) * 4, decoder_depths=(1,) * 4, time_strides=(2, 2, 2))
    | dict(space_strides=(1, 2, 1)),
    "images only": ONE_LEVEL | dict(patch=4),
    "space only": dict(time_strides=(1, 1), space_strides=(2, 2)),
}


@functools.cache
def model(name: str) -> CausalVideoAutoencoder:
    return vae(**ARCHITECTURES[name]).requires_grad_(False)


def pixels(model: CausalVideoAutoencoder, f: int, h: int = 1, w: int = 2, batch: int = 1) -> Tensor:
    """A clip of so many latent positions."""
    s = model.spatial_stride
    return clip(1 + model.temporal_stride * (f - 1), h * s, w * s, batch)


def latents(model: CausalVideoAutoencoder, f: int, h: int = 1, w: int = 2, batch: int = 1) -> Tensor:
    return torch.randn(batch, model.latent_channels, f, h, w)


def encode(model: CausalVideoAutoencoder, x: Tensor) -> Tensor:  # in one shot
    return model.encoder(x, StreamCache(more=False))


def decode(model: CausalVideoAutoencoder, z: Tensor) -> Tensor:
    return model.decoder(z, StreamCache(more=False))


def with_cut(cut: Cut, call, *args):
    """`call(*args)` with streams cut so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "choose_cut", lambda *_: cut)
        return call(*args)


def join(chunks) -> Tensor:
    return torch.cat(list(chunks), dim=2)
