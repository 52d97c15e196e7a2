"""Noise paths: their ends, their betas, their derivatives, the levels they have."""

import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from latentvid.diffusion.path import BETAS, DDPM, PATHS, Cosine, RectifiedFlow, betas, log_snr

BOTH = pytest.mark.parametrize("path", [RectifiedFlow(), Cosine(), DDPM()], ids=PATHS[:3])


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


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()], ids=PATHS[:2])
def test_derivatives_are_those_of_the_coefficients(path):
    t, h = torch.tensor([0.05, 0.2, 0.7, 0.95]), 0.01
    ahead, behind = path.coefficients(t + h), path.coefficients(t - h)
    for d, a, b in zip(path.derivatives(t), ahead, behind, strict=True):
        torch.testing.assert_close(d, (a - b) / (2 * h), rtol=1e-3, atol=1e-4)


def test_the_cosine_path_is_a_quarter_circle():
    alpha, sigma = Cosine().coefficients(torch.tensor([0.0, 1 / 3, 0.5, 2 / 3, 1.0]))
    torch.testing.assert_close(alpha.double().square().tolist(), [1.0, 0.75, 0.5, 0.25, 0.0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(5))
    assert alpha[-1] == 0 and sigma[0] == 0


def test_log_snr():
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    want = [math.inf, 2 * math.log(0.8 / 0.2), 0.0, 2 * math.log(0.1 / 0.9), -math.inf]
    torch.testing.assert_close(log_snr(RectifiedFlow(), t), torch.tensor(want))
    torch.testing.assert_close(log_snr(Cosine(), t)[1:4], -2 * (t[1:4] * math.pi / 2).tan().log(), rtol=1e-5, atol=1e-6)
    product = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:500])
    assert math.isclose(log_snr(DDPM(), t)[2], math.log(product / (1 - product)), rel_tol=1e-5)


NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(("start", "end", "steps"), [(1e-4, 0.02, 1000), (0.00085, 0.012, 250)])
def test_betas_are_those_of_diffusers(kind, start, end, steps):
    theirs = diffusers.DDPMScheduler(steps, start, end, NAMES[kind]).betas
    torch.testing.assert_close(betas(kind, start, end, steps), theirs.double(), rtol=1e-6, atol=1e-9)


def test_other_betas_by_hand():
    torch.testing.assert_close(betas("uniform", 0.1, 0.2, 4).tolist(), [0.25, 0.5, 0.75, 1.0])
    torch.testing.assert_close(betas("logarithmic", 1e-4, 1e-2, 5), torch.logspace(-4, -2, 5, dtype=torch.float64))


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("zero", [False, True])
def test_the_path_is_the_product_of_its_betas_and_zero_terminal_snr_that_of_diffusers(kind, zero):
    table = betas(kind, 1e-4, 0.02, 1000)
    if zero and kind != "uniform":  # which ends in noise alone as it is; theirs then divides 0 by 0
        table = rescale_zero_terminal_snr(table)
    want = torch.cat([torch.ones(1, dtype=torch.float64), (1 - table).cumprod(0)])
    path = DDPM(betas=kind, zero_terminal_snr=zero)
    torch.testing.assert_close(path.alphas_cumprod, want, rtol=1e-6, atol=1e-15)
    alpha, sigma = path.coefficients(torch.tensor([0.0, 1e-3, 1.0]))
    assert alpha[0] == 1 and (alpha[-1] == 0) == (zero or kind == "uniform")
    assert math.isclose(alpha[1] ** 2, 1 - betas(kind, 1e-4, 0.02, 1000)[0], rel_tol=1e-6)  # the first level stays


COGVIDEOX = [diffusers.CogVideoXDDIMScheduler, diffusers.CogVideoXDPMScheduler]


@pytest.mark.parametrize("scheduler", COGVIDEOX)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_shifted_path_is_that_of_cogvideox(scheduler, zero, scale):
    args = dict(beta_start=0.00085, beta_end=0.012)
    theirs = scheduler(**args, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero, snr_shift_scale=scale)
    path = DDPM(**args, betas="scaled_linear", zero_terminal_snr=zero, snr_shift_scale=scale)
    torch.testing.assert_close(path.alphas_cumprod[1:], theirs.alphas_cumprod.double(), rtol=1e-6, atol=1e-6)


def test_the_scale_divides_the_ratio_of_signal_to_noise():
    t = torch.linspace(1e-3, 1, 50)
    moved = log_snr(DDPM(), t) - log_snr(DDPM(snr_shift_scale=3.0), t)
    torch.testing.assert_close(moved, torch.full_like(t, math.log(3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snr_shift_scale": 0.0}, "snr_shift_scale 0.0: give a number above 0; 1 changes nothing"),
        ({"betas": "quadratic"}, "betas 'quadratic': one of linear, scaled_linear, logarithmic, uniform, cosine"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start 0.5 and beta_end 0.1: give 0 < start <= end < 1"),
    ],
)
def test_impossible_betas_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DDPM(**options)


def test_ddpm_has_no_flow():
    with pytest.raises(ValueError, match="flow target needs a differentiable path: use path rectified_flow"):
        DDPM().derivatives(torch.tensor(0.5))
