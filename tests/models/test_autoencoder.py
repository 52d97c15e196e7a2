"""Sizes, statistics, training pass and saving of the causal video autoencoder."""

import pytest
import torch
from small_vae import SMALL, clip, close, vae
from torch import Tensor

from latentvid.errors import UserError
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.causal3d import StreamCache


@pytest.fixture(scope="module")
def model() -> CausalVideoAutoencoder:
    return vae()


def encode(model: CausalVideoAutoencoder, x: Tensor) -> Tensor:
    return model.encode(x).latent_dist.parameters  # [B,2C,f,h,w]


def test_latent_sizes(model):
    assert model.latent_grid(1, 4, 4) == (1, 1, 1) and model.latent_grid(17, 8, 20) == (5, 2, 5)
    dist = model.encode(clip(5, 8, 16)).latent_dist
    assert dist.mean.shape == dist.sample(torch.Generator().manual_seed(0)).shape == (2, 4, 2, 2, 4)
    wide = vae(time_strides=(1, 2), space_strides=(2, 2))
    assert wide.latent_grid(5, 16, 24) == (3, 2, 3)
    assert encode(wide, clip(5, 16, 24)).shape == (2, 8, 3, 2, 3)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((16, 8, 8), r"16 frames: this VAE takes 1 \+ 4k frames, such as 13 or 17"),
        ((0, 8, 8), r"0 frames: this VAE takes 1 \+ 4k frames, such as 1 or 5"),
        ((5, 10, 8), r"10 x 8 pixels: this VAE takes multiples of 4, such as 8 x 8"),
        ((5, 8, 15), r"8 x 15 pixels: this VAE takes multiples of 4, such as 8 x 16"),
        ((5, 1, 8), r"1 x 8 pixels: this VAE takes multiples of 4, such as 4 x 8"),
    ],
)
def test_sizes_that_it_cannot_represent_name_near_legal_ones(model, size, message):
    with pytest.raises(UserError, match=message):
        model.latent_grid(*size)
    with pytest.raises(UserError, match=message):
        model.encode(torch.zeros(1, 3, *size))


def test_saving_and_loading_give_the_same_model(tmp_path):
    model = vae(latents_mean=(0.0, 1.0, 2.0, 3.0), latents_std=(1.0, 2.0, 1.0, 0.5))
    model.save_pretrained(tmp_path)
    loaded = CausalVideoAutoencoder.from_pretrained(tmp_path)
    assert not loaded.training and loaded.dtype == torch.float32
    x = clip(5)
    with torch.no_grad():
        assert torch.equal(encode(loaded, x), encode(model, x))
        z = torch.randn(1, 4, 2, 2, 3)
        assert torch.equal(loaded.decode(z).sample, model.decode(z).sample)
        assert torch.equal(loaded.normalise(z), model.normalise(z))


def test_statistics_normalise_and_back():
    model = vae(latents_mean=(0.0, 1.0, 2.0, -3.0), latents_std=(1.0, 2.0, 4.0, 0.5))
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (model.config.latents_mean, model.config.latents_std))
    unit = torch.randn(2, 4, 3, 2, 2)
    torch.testing.assert_close(model.normalise(unit * std + mean), unit)
    torch.testing.assert_close(model.denormalise(model.normalise(unit)), unit)


def test_missing_statistics_say_how_to_get_them(model):
    for method in (model.normalise, model.denormalise):
        with pytest.raises(UserError, match="no latents_mean and latents_std: finish its training"):
            method(torch.zeros(1, 4, 1, 1, 1))


def test_the_training_pass_is_encode_sample_decode_and_reaches_every_parameter(model):
    x, noise = clip(5), torch.randn(2, 4, 2, 2, 3)
    y, mean, logvar = model(x, noise)
    dist = model.encode(x).latent_dist
    close(mean, dist.mean)
    close(logvar, dist.logvar)
    close(y, model.decode(dist.mean + dist.std * noise).sample)
    (y.square().mean() + (mean.square() + logvar.exp() - logvar).mean()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    model.zero_grad()
    assert not missing


def test_residual_branches_start_at_zero():
    fresh = CausalVideoAutoencoder(**SMALL)
    block = fresh.encoder.stages[0]
    x = torch.randn(1, 8, 3, 4, 4)
    assert torch.equal(block(x, StreamCache(more=False)), x)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="one entry a level"):
        CausalVideoAutoencoder(**{**SMALL, "time_strides": (2,)})
    with pytest.raises(ValueError, match="kernels='cube': one of full, factorised, mixed"):
        CausalVideoAutoencoder(**{**SMALL, "kernels": "cube"})
    with pytest.raises(TypeError, match="width"):
        CausalVideoAutoencoder(**SMALL, width=8)
