"""Targets, their inversion, and a loss that counts only what was noised."""

import pytest
import torch

from latentvid.diffusion.objective import loss_per_sample, recover, target_coefficients
from latentvid.diffusion.path import DDPM, RectifiedFlow
from latentvid.packing import Packed

LEGAL = [
    *[("rectified_flow", RectifiedFlow(), target) for target in ("flow", "v", "x", "eps")],
    *[("ddpm", DDPM(), target) for target in ("v", "eps", "x")],
]
EACH = pytest.mark.parametrize(("path", "target"), [case[1:] for case in LEGAL], ids=[f"{p}-{t}" for p, _, t in LEGAL])


def noised(path, target, t):
    x, eps = torch.randn(len(t), 6), torch.randn(len(t), 6)
    (alpha, sigma), (p, q) = path.coefficients(t), target_coefficients(target, path, t)
    return x, eps, alpha * x + sigma * eps, p * x + q * eps


@EACH
def test_recover_inverts(path, target):
    t = torch.tensor([0.05, 0.3, 0.5, 0.77, 0.93])[:, None]
    x, eps, z, y = noised(path, target, t)
    got_x, got_eps = recover(z, y, target, path, t)
    torch.testing.assert_close(got_x, x, rtol=1e-4, atol=2e-4)  # ddpm-eps divides by alpha = 0.02 at 0.93
    torch.testing.assert_close(got_eps, eps, rtol=1e-4, atol=2e-4)


@EACH
def test_both_ends_are_finite_and_return_what_is_known(path, target):
    t = torch.tensor([0.0, 1.0])[:, None]
    x, eps, z, y = noised(path, target, t)
    got_x, got_eps = recover(z, y, target, path, t)
    assert got_x.isfinite().all() and got_eps.isfinite().all()
    torch.testing.assert_close(got_x[0], x[0])  # at 0 the data itself
    torch.testing.assert_close(got_eps[1], eps[1], rtol=1e-3, atol=1e-3)
    if target == "x":
        assert not got_eps[0].any()
    if target == "eps" and isinstance(path, RectifiedFlow):
        assert not got_x[1].any()


@EACH
def test_clean_rows_are_known_whatever_the_network_says(path, target):
    z, wrong = torch.randn(3, 6), torch.randn(3, 6)
    x, _ = recover(z, wrong, target, path, torch.zeros(3, 1))
    assert torch.equal(x, z)


def test_targets_by_hand():
    t = torch.tensor([0.25])
    for target, p, q in (("eps", 0, 1), ("x", 1, 0), ("v", -0.25, 0.75), ("flow", -1, 1)):
        assert [c.item() for c in target_coefficients(target, RectifiedFlow(), t)] == [p, q]
    alpha, sigma = DDPM().coefficients(t)
    assert target_coefficients("v", DDPM(), t) == (-sigma, alpha)


def test_loss_is_each_samples_mean_over_its_noised_tokens():
    layout = Packed.of([(2, 1, 2), (1, 1, 3), (2, 1, 1)])  # rows of 2, 2, 3, 1 and 1 tokens
    prediction, target = torch.randn(layout.tokens, 5), torch.randn(layout.tokens, 5)
    timestep = torch.tensor([0.0, 0.4, 0.9, 0.0, 0.0])
    error = (prediction - target).square().mean(-1)
    want = torch.stack([error[2:4].mean(), error[4:7].mean(), torch.tensor(0.0)])
    torch.testing.assert_close(loss_per_sample(prediction, target, timestep, layout), want)


def test_given_rows_have_no_gradient_and_noised_ones_share_their_samples_evenly():
    layout = Packed.of([(3, 1, 2), (1, 1, 1)])
    prediction = torch.ones(7, 4, requires_grad=True)
    timestep = torch.tensor([0.0, 0.5, 1e-4, 0.5])
    loss_per_sample(prediction, torch.zeros(7, 4), timestep, layout).sum().backward()
    want = torch.tensor([0, 0, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1])[:, None] * 2 / 4
    torch.testing.assert_close(prediction.grad, want.expand(7, 4))


def test_loss_of_bf16_predictions_is_taken_in_float32():
    layout = Packed.of([(1, 16, 16)])
    prediction, target = torch.randn(256, 8).bfloat16(), torch.randn(256, 8)
    got = loss_per_sample(prediction, target, torch.tensor([0.5]), layout)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got[0], (prediction.float() - target).square().mean())
