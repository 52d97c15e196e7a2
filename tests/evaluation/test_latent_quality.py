"""The latent report on latents whose figures are known, and its picture."""

import json
import math
from xml.etree import ElementTree

import pytest
import torch

from latentvid.errors import UserError
from latentvid.evaluation.vae.latent_picture import draw_latents
from latentvid.evaluation.vae.latent_quality import LatentQuality, effective_rank


def report(*latents: torch.Tensor) -> dict:
    quality = LatentQuality()
    for z in latents:
        quality.add(z)
    return quality.report()


def test_statistics_are_those_of_all_elements_together():
    a, b = torch.randn(3, 5, 8, 8) + 100, torch.rand(3, 1, 16, 8) * 4
    found = report(a, b)
    flat = torch.cat([a.flatten(1), b.flatten(1)], dim=1).double()  # [3,N]
    mean, std = flat.mean(1), flat.std(1, correction=0)
    kurtosis = ((flat - mean[:, None]) / std[:, None]).pow(4).mean(1)
    for name, expected in (("mean", mean), ("std", std), ("kurtosis", kurtosis), ("correlation", flat.corrcoef())):
        torch.testing.assert_close(torch.tensor(found[name]).double(), expected, rtol=1e-5, atol=1e-5)
    assert (found["clips"], found["positions"], found["patch_dimension"]) == (2, flat.shape[1], 24)
    off = flat.corrcoef()[~torch.eye(3, dtype=torch.bool)].abs().mean()
    assert found["mean_absolute_correlation"] == pytest.approx(float(off), abs=1e-6)


def test_effective_rank_counts_equal_directions():
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0, 0.0]))) == pytest.approx(2)
    half = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert effective_rank(torch.diag(torch.tensor([9.0, 1.0]))) == pytest.approx(math.exp(half))
    assert effective_rank(torch.zeros(3, 3)) == 0
    source = torch.randn(2, 4, 32, 32)
    mixed = report(torch.einsum("dc,cfhw->dfhw", torch.randn(5, 2), source))  # five channels, two of them free
    assert mixed["effective_rank"] < 2.01 and mixed["normalised_effective_rank"] < 2.01
    loud = report(torch.cat([source[:1] * 100, source[1:]]))  # one channel drowns the other until they are normalised
    assert loud["effective_rank"] < 1.01 and loud["normalised_effective_rank"] > 1.99


def test_white_noise_is_flat_and_fills_its_patches():
    found = report(*torch.randn(6, 2, 8, 32, 32))
    for axis in ("space", "time"):
        assert found["spectrum"][axis]["power"] == pytest.approx(
            [1.0] * len(found["spectrum"][axis]["power"]), rel=0.15
        )
        assert abs(found["spectrum"][axis]["slope"]) < 0.1
    assert found["patch_effective_rank"] > 0.98 * found["patch_dimension"]
    assert all(abs(value) < 0.03 for value in found["neighbour_correlation"].values())
    assert found["kurtosis"] == pytest.approx([3, 3], abs=0.1)


def test_a_power_law_gives_its_slope():
    frequency = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.fftfreq(64)).clamp_min(1 / 64)
    z = torch.fft.ifft2(torch.fft.fft2(torch.randn(4, 6, 64, 64)) / frequency).real  # power ~ 1 / f^2
    found = report(z)
    assert found["spectrum"]["space"]["slope"] == pytest.approx(-2, abs=0.2)
    assert found["neighbour_correlation"]["height"] > 0.6 > 0.2 > abs(found["neighbour_correlation"]["time"])


def test_neighbours_in_time_are_compared_in_time():
    walk = torch.randn(2, 40, 8, 8).cumsum(1)
    found = report(walk)["neighbour_correlation"]
    assert found["time"] > 0.9 and abs(found["height"]) < 0.3
    shift = torch.randn(1, 6, 9, 9)
    row = report(shift)["neighbour_correlation"]["width"]
    pair = torch.stack([shift[..., :-1].flatten(), shift[..., 1:].flatten()])
    assert row == pytest.approx(float(pair.corrcoef()[0, 1]), abs=1e-6)


def test_images_tiny_latents_and_dead_channels_have_a_report():
    image = torch.randn(2, 1, 8, 8)
    image[1] = 0.5
    found = report(image)
    assert found["spectrum"]["time"] is None and found["neighbour_correlation"]["time"] is None
    assert found["patch_effective_rank"] is None and found["std"][1] < 1e-6
    dot = report(torch.randn(1, 1, 1, 1))
    assert dot["spectrum"]["space"] is None and dot["mean_absolute_correlation"] == 0
    for each in (found, dot):
        json.dumps(each, allow_nan=False)
        ElementTree.fromstring(draw_latents(each))
    with pytest.raises(UserError, match="no latent"):
        LatentQuality().report()
    with pytest.raises(ValueError, match="channels of those before"):
        report(image, image[:1])


def test_the_picture_draws_every_curve_and_channel():
    found = report(*torch.randn(2, 3, 5, 16, 16))
    tree = ElementTree.fromstring(draw_latents(found))
    assert len(tree.findall(".//{*}polyline")) == 2 and len(tree.findall(".//{*}circle")) == 3
