"""Guidance against formulas written out, and against a Gaussian whose conditional is known in closed form."""

import pytest
import torch
from torch import Tensor

from latentvid.diffusion.guidance import Guidance, classifier_free, measurement_guided, reconstruction_guided
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.diffusion.solvers import SOLVERS, solve
from latentvid.errors import UserError
from latentvid.packing import Packed

LAYOUT = Packed.of([(3, 1, 2), (1, 2, 2)])  # 4 rows, 10 tokens
LEVELS = torch.tensor([0.0, 0.8, 0.5, 0.6])


def branches() -> tuple[Tensor, Tensor]:
    return torch.randn(10, 4) * 1.5 + 0.3, torch.randn(10, 4) - 0.2


def test_classifier_free():
    c, u = branches()
    torch.testing.assert_close(classifier_free(c, u, 1.0), c)
    torch.testing.assert_close(classifier_free(c, u, 0.0), u)
    torch.testing.assert_close(classifier_free(c, u, 3.0), 3 * c - 2 * u)
    torch.testing.assert_close(Guidance(scale=3.0).combine(c, u, LEVELS, LAYOUT)[2:], (3 * c - 2 * u)[2:])


def test_guidance_is_within_its_interval_and_not_on_given_rows():
    c, u = branches()
    got = Guidance(scale=3.0, interval=(0.55, 0.7)).combine(c, u, LEVELS, LAYOUT)
    torch.testing.assert_close(got[:6], c[:6])
    torch.testing.assert_close(got[6:], 3 * c[6:] - 2 * u[6:])
    assert Guidance(scale=3.0).scales(torch.tensor([0.0, 1e-4, 1.0])).tolist() == [1.0, 3.0, 3.0]
    ends = torch.tensor([0.2, 0.25, 0.5, 0.55])
    assert Guidance(scale=3.0, interval=(0.25, 0.5)).scales(ends).tolist() == [1.0, 3.0, 3.0, 1.0]


@pytest.mark.parametrize("rescale", [0.7, 1.0])
def test_rescale_is_that_of_lin_et_al(rescale):
    """x_cfg = u + w (c - u); x_rescaled = x_cfg std(c) / std(x_cfg); phi x_rescaled + (1 - phi) x_cfg, by sample."""
    c, u = branches()
    got = Guidance(scale=7.5, rescale=rescale).combine(c, u, LEVELS, LAYOUT)
    for tokens in (slice(2, 6), slice(6, 10)):  # the first two are given
        cfg = u[tokens] + 7.5 * (c[tokens] - u[tokens])
        want = rescale * cfg * (c[tokens].std() / cfg.std()) + (1 - rescale) * cfg
        torch.testing.assert_close(got[tokens], want)
    torch.testing.assert_close(got[:2], c[:2])
    if rescale == 1.0:
        torch.testing.assert_close(got[6:].std(), c[6:].std())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": (0.6, 0.4)}, "guidance interval 0.6 to 0.4"),
        ({"interval": (0.0, 1.2)}, r"guidance_interval\[1\]=1.2: must be"),
        ({"rescale": 1.5}, "guidance_rescale=1.5: must be a finite number from 0 to 1"),
        ({"zero_init": -1}, "zero_init=-1: must be a whole number from 0"),
    ],
)
def test_impossible_guidance_is_named(options, message):
    with pytest.raises(UserError, match=message):
        Guidance(**options)


# ------------------------------------------------------------------------------------------------------ reconstruction

FRAMES, KNOWN = 4, 2
COVARIANCE = 0.9 ** (torch.arange(FRAMES)[:, None] - torch.arange(FRAMES)).abs().double()  # neighbours are alike
SEEN = torch.tensor([1.6, 1.1], dtype=torch.float64)  # what is known of every sample
CASES = [("rectified_flow", "flow"), ("rectified_flow", "x"), ("cosine", "v"), ("ddpm", "eps")]


def gaussian(scheduler: LatentVideoScheduler, layout: Packed):
    """The exact network for samples N(0, COVARIANCE) of FRAMES tokens, each in a row of its own."""

    def predict(z: Tensor, t: Tensor) -> Tensor:
        level = t.index_select(0, layout.frame)[:, None]
        alpha, sigma = (c.double().view(-1, FRAMES) for c in scheduler.path.coefficients(level))
        noised = alpha[:, :, None] * COVARIANCE * alpha[:, None] + torch.diag_embed(sigma.square().clamp_min(1e-12))
        gain = torch.linalg.solve(noised, alpha[:, :, None] * COVARIANCE)  # [N,F,F]
        x = torch.einsum("nf,nfg->ng", z.double().view(-1, FRAMES), gain).reshape(-1, 1)
        alpha, sigma = scheduler.path.coefficients(level)
        return scheduler.target(x, (z - alpha * x) / sigma.clamp_min(1e-6), level).to(z.dtype)

    return predict


def conditional() -> tuple[Tensor, Tensor]:
    """Mean [F-K] and covariance of the unknown frames given SEEN."""
    gain = torch.linalg.solve(COVARIANCE[:KNOWN, :KNOWN], COVARIANCE[:KNOWN, KNOWN:])
    return SEEN @ gain, COVARIANCE[KNOWN:, KNOWN:] - COVARIANCE[KNOWN:, :KNOWN] @ gain


def extended(path: str, target: str, weight: float | None, solver: str = "euler", count: int = 400) -> Tensor:
    """The unknown frames [N,F-K] that are sampled; no weight is replacement alone."""
    scheduler, layout = LatentVideoScheduler(path, target), Packed.of([(FRAMES, 1, 1)] * count)
    known = (torch.arange(FRAMES) < KNOWN).repeat(count)[:, None]
    clean = torch.cat([SEEN, torch.zeros(FRAMES - KNOWN)]).float().repeat(count)[:, None]
    eps, levels = torch.randn(count * FRAMES, 1), scheduler.levels(20)[:, None].expand(-1, count * FRAMES)

    def put_back(z: Tensor, t: Tensor) -> Tensor:
        return torch.where(known, scheduler.mix(clean, eps, t[:, None]), z)

    predict = gaussian(scheduler, layout)
    if weight is not None:
        predict = reconstruction_guided(predict, scheduler, layout, known, clean, weight)
    z = put_back(torch.randn(count * FRAMES, 1), levels[0])
    noise = lambda: torch.randn(count * FRAMES, 1)  # noqa: E731
    z = solve(scheduler, predict, z, levels, layout, solver=solver, noise=noise, after=put_back)
    torch.testing.assert_close(z[known], clean[known])
    return z.view(count, FRAMES)[:, KNOWN:].double()


@pytest.mark.parametrize(("path", "target"), CASES)
def test_reconstruction_guidance_finds_the_conditional_that_replacement_misses(path, target):
    mean, covariance = conditional()
    replaced, guided = (extended(path, target, weight) for weight in (None, 2.0))

    def off(found: Tensor) -> float:
        return float((found.mean(0) - mean).norm())

    assert off(guided) < 0.45 * off(replaced)
    spread = ((found - mean).square().mean() / covariance.diag().mean() for found in (replaced, guided))
    assert next(spread) > 2 > 1.6 > next(spread)  # 1 is the conditional's own


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_reconstruction_guidance_goes_with_every_solver(solver):
    mean, _ = conditional()
    found = extended("rectified_flow", "flow", 2.0, solver, count=200)
    assert (found.mean(0) - mean).norm() < 0.4


@pytest.mark.parametrize(("path", "target"), CASES)
def test_the_gradient_is_that_of_the_formula(path, target):
    """x of the unknown - (w alpha / 2) d ||clean - x of the known||^2 / dz, by the Jacobian of a linear map."""
    scheduler, layout = LatentVideoScheduler(path, target), Packed.of([(FRAMES, 1, 1)])
    known, clean = torch.tensor([True, False, True, False])[:, None], torch.randn(4, 1)
    z, t = torch.randn(4, 1), torch.tensor([0.6, 0.6, 0.6, 0.6])
    exact = gaussian(scheduler, layout)
    x, _ = scheduler.recover(z, exact(z, t), t[:, None])
    jacobian = torch.autograd.functional.jacobian(lambda z: scheduler.recover(z, exact(z, t), t[:, None])[0], z)[
        :, 0, :, 0
    ]
    gradient = -2 * jacobian.T @ torch.where(known, clean - x, 0.0)
    alpha, _ = scheduler.path.coefficients(t[:1])
    want = torch.where(known, clean, x - 0.5 * 1.5 * alpha * gradient)
    guided = reconstruction_guided(exact, scheduler, layout, known, clean, 1.5)(z, t)
    torch.testing.assert_close(scheduler.recover(z, guided, t[:, None])[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("path", "target"), CASES)
def test_given_rows_and_the_ends_stay_sound(path, target):
    """Rows at level 0 keep their x, whatever is measured; at level 1 all is finite."""
    scheduler, layout = LatentVideoScheduler(path, target), Packed.of([(FRAMES, 1, 1)])
    z, t = torch.randn(4, 1), torch.tensor([0.0, 0.3, 1.0, 1.0])
    known = torch.tensor([False, True, False, True])[:, None]
    guided = reconstruction_guided(gaussian(scheduler, layout), scheduler, layout, known, torch.ones(4, 1), 2.0)(z, t)
    x, eps = scheduler.recover(z, guided, t[:, None])
    assert x.isfinite().all() and eps.isfinite().all()
    torch.testing.assert_close(x[0], z[0])
    torch.testing.assert_close(x[1], torch.ones(1))


def test_samples_of_a_pack_do_not_guide_each_other():
    scheduler, layout = LatentVideoScheduler(), Packed.of([(FRAMES, 1, 1)] * 2)
    known, clean = torch.tensor([True, False, False, True] * 2)[:, None], torch.randn(8, 1)
    z, t = torch.randn(8, 1), torch.tensor([0.7] * 4 + [0.2] * 4)
    both = reconstruction_guided(gaussian(scheduler, layout), scheduler, layout, known, clean, 2.0)(z, t)
    one = Packed.of([(FRAMES, 1, 1)])
    for part in (slice(0, 4), slice(4, 8)):
        alone = reconstruction_guided(gaussian(scheduler, one), scheduler, one, known[part], clean[part], 2.0)
        torch.testing.assert_close(both[part], alone(z[part], t[part]))


@pytest.mark.parametrize(("path", "target"), CASES)
def test_guidance_by_the_means_of_neighbours(path, target):
    """Average pooling by 2, as super-resolution has it: samples come to have the means that were measured."""
    count, value = 300, torch.tensor([1.2, -0.8])
    scheduler, layout = LatentVideoScheduler(path, target), Packed.of([(FRAMES, 1, 1)] * 300)

    def pooled(x: Tensor) -> Tensor:
        return x.view(-1, FRAMES // 2, 2).mean(2)

    exact = gaussian(scheduler, layout)
    levels = scheduler.levels(20)[:, None].expand(-1, count * FRAMES)
    z = torch.randn(count * FRAMES, 1)
    guided = measurement_guided(exact, scheduler, layout, pooled, value.expand(count, 2), 2 * 2.0)  # 2 values a mean
    plain, led = (solve(scheduler, p, z, levels, layout).view(count, FRAMES) for p in (exact, guided))
    wrong = [(pooled(found) - value).square().mean().sqrt() for found in (plain, led)]
    assert wrong[1] < 0.25 * wrong[0]
    pool = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], dtype=torch.float64)
    mean = COVARIANCE @ pool.T @ torch.linalg.solve(pool @ COVARIANCE @ pool.T, value.double())
    assert (led.double().mean(0) - mean).norm() < 0.25 * mean.norm()
