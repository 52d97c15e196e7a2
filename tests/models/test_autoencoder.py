"""Causality, streaming, sizes, statistics and saving of the causal video autoencoder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentvid.errors import UserError
from latentvid.models.autoencoder import KERNELS, CausalVideoAutoencoder
from latentvid.models.causal3d import StreamCache

quick = settings(max_examples=12, deadline=None, database=None, derandomize=True)
SMALL = dict(latent_channels=4, patch=2, widths=(8, 8, 16), time_strides=(2, 2), space_strides=(2, 1))


def vae(**changes) -> CausalVideoAutoencoder:
    """A small model whose zero-initialised branches are disturbed, so that every layer shows."""
    torch.manual_seed(1)
    model = CausalVideoAutoencoder(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def model() -> CausalVideoAutoencoder:
    return vae()


def clip(frames: int, height: int = 8, width: int = 12, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, frames, height, width) * 2 - 1


def encode(model: CausalVideoAutoencoder, x: Tensor, chunk: int | None = None) -> Tensor:
    return model.encode(x, frames_per_chunk=chunk).latent_dist.parameters  # [B,2C,f,h,w]


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernels", sorted(KERNELS))
@pytest.mark.parametrize("j", [0, 1, 2])
@torch.no_grad()
def test_nothing_depends_on_later_frames(kernels, j):
    model, x = vae(kernels=kernels), clip(13)
    later = x.clone()
    later[:, :, 4 * j + 1 :] = clip(13)[:, :, 4 * j + 1 :]
    z, z_later = encode(model, x), encode(model, later)
    close(z_later[:, :, : j + 1], z[:, :, : j + 1])
    assert not torch.allclose(z_later[:, :, j + 1], z[:, :, j + 1], atol=1e-3)

    z, _ = z.chunk(2, 1)
    z_later = z.clone()
    z_later[:, :, j + 1 :] += torch.randn_like(z[:, :, j + 1 :])
    y, y_later = model.decode(z).sample, model.decode(z_later).sample
    assert y.shape == x.shape
    close(y_later[:, :, : 4 * j + 1], y[:, :, : 4 * j + 1])
    assert not torch.allclose(y_later[:, :, 4 * j + 1], y[:, :, 4 * j + 1], atol=1e-3)


@torch.no_grad()
def test_every_frame_reaches_its_latent_and_every_latent_its_frames(model):
    x, z = clip(9), torch.randn(1, 4, 3, 2, 3)
    for frame in range(9):
        changed = x.clone()
        changed[:, :, frame] += 0.5
        moved = (encode(model, changed) - encode(model, x)).abs().amax((0, 1, 3, 4)) > 1e-5
        assert moved.nonzero()[0].item() == (frame + 3) // 4
    for latent in range(3):
        changed = z.clone()
        changed[:, :, latent] += 0.5
        moved = (model.decode(changed).sample - model.decode(z).sample).abs().amax((0, 1, 3, 4)) > 1e-5
        assert moved.nonzero()[0].item() == max(0, 4 * latent - 3)


@torch.no_grad()
def test_an_image_is_the_first_frame_of_a_clip(model):
    x, z = clip(9), torch.randn(2, 4, 3, 2, 3)
    close(encode(model, x[:, :, :1]), encode(model, x)[:, :, :1])
    close(model.decode(z[:, :, :1]).sample, model.decode(z).sample[:, :, :1])


@torch.no_grad()
def test_the_clips_of_a_batch_do_not_mix(model):
    x = clip(5, batch=3)
    close(encode(model, x)[1:2], encode(model, x[1:2]))


@quick
@given(st.integers(0, 6), st.integers(1, 8))
def test_streaming_equals_one_shot(model, groups, chunk_groups):
    x, chunk = clip(1 + 4 * groups, batch=1), 4 * chunk_groups
    with torch.no_grad():
        z = encode(model, x)
        close(encode(model, x, chunk), z)
        z = z.chunk(2, 1)[0]
        close(model.decode(z, frames_per_chunk=chunk).sample, model.decode(z).sample)


@quick
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_streams_may_change_their_chunks_length(model, groups):
    """Frames arrive as they come: the first chunk holds the first frame, the others any number of whole groups."""
    x = clip(1 + 4 * sum(groups), batch=1)
    edges = [0, *(1 + 4 * sum(groups[: i + 1]) for i in range(len(groups)))]
    cache, parts = StreamCache(more=True), []
    with torch.no_grad():
        for start, stop in zip(edges, edges[1:], strict=False):
            parts.append(model.encoder(x[:, :, start:stop], cache))
            cache.started = True
        close(torch.cat(parts, 2), encode(model, x))


def test_a_chunk_that_splits_a_group_is_refused(model):
    with pytest.raises(ValueError, match="positive multiple of 4"):
        model.encode(clip(17), frames_per_chunk=6)


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
    with pytest.raises(ValueError, match="folded channels do not divide evenly"):
        CausalVideoAutoencoder(**{**SMALL, "widths": (8, 7, 16)})
    with pytest.raises(TypeError, match="width"):
        CausalVideoAutoencoder(**SMALL, width=8)
