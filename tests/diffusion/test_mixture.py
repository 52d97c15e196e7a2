"""With the exact denoiser of a mixture of Gaussians: solvers reach the distribution, at the order that theory gives."""

import math

import pytest
import torch
from gaussian_mixture import Mixture, sliced_wasserstein, three_in_a_plane

from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.diffusion.solvers import SOLVERS, solve
from latentvid.packing import Packed

POINTS = 1500
LAYOUT = Packed.of([(1, 1, POINTS)])
MIXTURE = three_in_a_plane()
LEGAL = [("rectified_flow", t, {}) for t in ("flow", "v", "x")] + [("cosine", t, {}) for t in ("flow", "v", "x")]
LEGAL += [("ddpm", t, {}) for t in ("eps", "v", "x")]
LEGAL += [("ddpm", "v", {"zero_terminal_snr": True}), ("ddpm", "x", {"betas": "cosine"})]
LEGAL += [("edm", "edm", {"spacing": "karras", "sigma_min": 0.01, "sigma_max": 20.0})]


def balanced_noise(generator: torch.Generator) -> torch.Tensor:
    """Unit noise [T,2] in antithetic pairs, so that sampling error of the moments is small."""
    half = torch.randn(POINTS // 2, 2, generator=generator)
    return torch.cat([half, -half])


def test_the_denoiser_is_that_of_a_brute_force_average():
    """E[x | z] by importance weights over many draws of x."""
    x = MIXTURE.sample(400_000, torch.Generator().manual_seed(0))
    for alpha, sigma in ((0.8, 0.6), (0.3, 0.9)):
        z = torch.tensor([[0.4, -0.3], [-0.8, 0.5], [0.1, 1.0]], dtype=torch.float64)
        weight = (-0.5 * ((z[:, None] - alpha * x) / sigma).square().sum(-1)).softmax(1)  # [3,draws]
        level = torch.full((3, 1), alpha), torch.full((3, 1), sigma)
        torch.testing.assert_close(MIXTURE.denoise(z, *level), weight @ x, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize(("path", "target", "options"), LEGAL)
def test_every_path_target_and_solver_reaches_the_distribution(path, target, options, solver):
    scheduler = LatentVideoScheduler(path, target, **options)
    rand = torch.Generator().manual_seed(1)
    levels = scheduler.levels(24)[:, None]
    predict = MIXTURE.predictor(scheduler, LAYOUT)
    z = solve(
        scheduler, predict, balanced_noise(rand), levels, LAYOUT, solver=solver, noise=lambda: balanced_noise(rand)
    )
    want = MIXTURE.sample(POINTS, torch.Generator().manual_seed(2))
    far = sliced_wasserstein(want, torch.randn(POINTS, 2, generator=rand))
    assert sliced_wasserstein(z, want) < 0.12 < far / 3
    assert (z.mean(0) - want.mean(0)).abs().max() < 0.1
    assert (z.double().T.cov() - want.T.cov()).abs().max() < 0.12


def error(scheduler: LatentVideoScheduler, solver: str, steps: int, z: torch.Tensor) -> torch.Tensor:
    """The state [T,2] after so many steps from level 0.95 to 0.05, where sigma / alpha is tame."""
    levels = scheduler.path.snap(torch.linspace(0.95, 0.05, steps + 1, dtype=torch.float64)).float()[:, None]
    layout = Packed.of([(1, 1, len(z))])
    return solve(scheduler, MIXTURE.predictor(scheduler, layout), z, levels, layout, solver=solver)


FINE = {"num_train_timesteps": 8192, "beta_start": 1e-4 * 1000 / 8192, "beta_end": 0.02 * 1000 / 8192}


@pytest.mark.parametrize(("path", "options"), [("rectified_flow", {}), ("cosine", {}), ("ddpm", FINE)])
def test_errors_fall_at_the_order_of_the_solver(path, options):
    scheduler = LatentVideoScheduler(path, "v", **options)
    z = torch.randn(64, 2, dtype=torch.float64)
    finest = error(scheduler, "heun", 512, z)
    for solver, order in (("euler", 1.0), ("heun", 2.0), ("dpmpp_2m", 2.0), ("unipc", 2.0)):
        coarse, fine = ((error(scheduler, solver, n, z) - finest).double().square().mean().sqrt() for n in (32, 128))
        assert math.log(coarse / fine, 4) > order - 0.4, solver
        assert order == 2.0 or math.log(coarse / fine, 4) < 1.2


def test_distances_and_impossible_sets():
    a = torch.randn(1000, 2, dtype=torch.float64)
    assert sliced_wasserstein(a, a[torch.randperm(1000)]) < 1e-12
    moved = sliced_wasserstein(a, a + torch.tensor([3.0, 4.0]))  # 5 along the shift, |cos| of it in other directions
    assert math.isclose(moved, 5 / math.sqrt(2), rel_tol=1e-6)
    with pytest.raises(ValueError, match="two equal sets of points in the plane"):
        sliced_wasserstein(a, a[:10])


def test_one_gaussian_is_the_linear_denoiser():
    root = torch.tensor([[0.9, 0.0], [0.5, 0.3]], dtype=torch.float64)
    gaussian = Mixture(torch.ones(1), torch.tensor([[1.0, -2.0]]), (root @ root.T)[None])
    z, alpha, sigma = torch.randn(7, 2, dtype=torch.float64), 0.6, 0.7
    mean, cov = torch.tensor([1.0, -2.0], dtype=torch.float64), root @ root.T
    gain = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(2, dtype=torch.float64))
    level = torch.full((7, 1), alpha, dtype=torch.float64), torch.full((7, 1), sigma, dtype=torch.float64)
    torch.testing.assert_close(gaussian.denoise(z, *level), mean + (z - alpha * mean) @ gain.T)
