"""Noise paths: their ends, their derivatives, the levels they have."""

import pytest
import torch

from latentvid.diffusion.path import DDPM, PATHS, Cosine, RectifiedFlow

BOTH = pytest.mark.parametrize("path", [RectifiedFlow(), Cosine(), DDPM()], ids=PATHS)


@BOTH
def test_level_0_is_clean_and_noise_only_grows(path):
    alpha, sigma = path.coefficients(torch.linspace(0, 1, 101))
    assert (alpha[0], sigma[0]) == (1, 0) and alpha[-1] < 0.01 and sigma[-1] > 0.99
    assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all()
    assert alpha.dtype == sigma.dtype == torch.float32


@BOTH
def test_coefficients_are_float32_and_of_any_shape(path):
    for t in (torch.tensor(0.5), torch.full((3, 1), 0.5, dtype=torch.float64), torch.full((2, 3), 0.5).bfloat16()):
        alpha, sigma = path.coefficients(t)
        assert alpha.shape == sigma.shape == t.shape and alpha.dtype == sigma.dtype == torch.float32


def test_ddpm_keeps_variance_and_follows_its_betas():
    path = DDPM(beta_start=0.1, beta_end=0.3, steps=3)
    alpha, sigma = path.coefficients(torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]))
    torch.testing.assert_close(alpha.square(), torch.tensor([1.0, 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]))
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(4))
    alpha, sigma = DDPM().coefficients(torch.arange(1001) / 1000)  # float32 levels hit their own integers
    assert alpha.unique().numel() == 1001


def test_ddpm_levels_snap_to_those_it_has():
    t = DDPM(steps=10).snap(torch.tensor([1e-6, 0.04, 0.06, 0.349, 0.96, 1.0]))
    torch.testing.assert_close(t, torch.tensor([0.1, 0.1, 0.1, 0.3, 1.0, 1.0]))
    t = torch.rand(5)
    assert torch.equal(RectifiedFlow().snap(t), t)


def test_flows_derivatives_are_those_of_its_coefficients():
    t, h = torch.tensor([0.2, 0.7]), 0.05
    ahead, behind = RectifiedFlow().coefficients(t + h), RectifiedFlow().coefficients(t - h)
    for d, a, b in zip(RectifiedFlow().derivatives(t), ahead, behind, strict=True):
        torch.testing.assert_close(d, (a - b) / (2 * h))


def test_ddpm_has_no_flow():
    with pytest.raises(ValueError, match="flow target needs a differentiable path: use path rectified_flow"):
        DDPM().derivatives(torch.tensor(0.5))
