"""EDM (Karras et al. 2022): the paper's formulas, its schedule and its draws, and diffusers' schedulers."""

import math

import diffusers
import pytest
import torch
from torch import Tensor

from latentvid.diffusion.inversion import _gain
from latentvid.diffusion.path import DDPM, EDM, Cosine, RectifiedFlow
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.diffusion.solvers import solve
from latentvid.diffusion.timesteps import TimestepSampling
from latentvid.packing import Packed

TOKENS, FEATURES, STEPS = 5, 6, 8
DATA = pytest.mark.parametrize("data", [0.5, 1.0])
LAYOUT = Packed.of([(1, 1, TOKENS)])


def made(data: float, target: str = "edm", **more) -> LatentVideoScheduler:
    return LatentVideoScheduler("edm", target, sigma_data=data, spacing="karras", **more)


def network(z: Tensor, c_noise: Tensor) -> Tensor:
    """A fixed random map of what a network reads."""
    rand = torch.Generator().manual_seed(3)
    w, b = torch.randn(FEATURES, FEATURES, generator=rand) / 3, torch.randn(FEATURES, generator=rand)
    return torch.tanh(z.float() @ w + c_noise.float() * b)


def start(scale: float) -> Tensor:
    return scale * torch.randn(TOKENS, FEATURES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def ours(scheduler: LatentVideoScheduler, levels: Tensor, solver: str = "euler", z: Tensor | None = None) -> Tensor:
    rand = torch.Generator().manual_seed(7)
    predict = lambda z, t: network(*scheduler.inputs(z, t))  # noqa: E731
    noise = lambda: torch.randn(TOKENS, FEATURES, generator=rand)  # noqa: E731
    z = scheduler.begin(start(1.0).float()) if z is None else z
    return solve(scheduler, predict, z, levels[:, None], LAYOUT, solver=solver, noise=noise)


def denoised(y: Tensor, sigma: Tensor, data: float) -> Tensor:
    """D(y; sigma), equation 7 with the functions of table 1."""
    root = (sigma**2 + data**2).sqrt()
    return data**2 / root**2 * y + sigma * data / root * network(y / root, sigma.log() / 4)


def schedule(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """Equation 5, in float64."""
    place = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    noise = (high ** (1 / rho) + place * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat([noise, torch.zeros(1, dtype=torch.float64)])


@DATA
def test_the_functions_of_the_paper(data):
    """c_skip, c_out, c_in and c_noise of table 1, and the target of equation 8."""
    scheduler, sigma = made(data), torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)[:, None]
    x, n, raw = (torch.randn(5, FEATURES, dtype=torch.float64) for _ in range(3))
    t, y, root = scheduler.path.at(sigma), x + sigma * n, (sigma**2 + data**2).sqrt()
    c_skip, c_out, c_in = data**2 / root**2, sigma * data / root, 1 / root
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(scheduler.path.noise(t), sigma, rtol=1e-5, atol=0)
    z = scheduler.mix(x, n, t)
    read, told = scheduler.inputs(z, t)
    torch.testing.assert_close(read, c_in * y, **close)
    torch.testing.assert_close(told.double(), sigma.log() / 4, **close)
    torch.testing.assert_close(scheduler.target(x, n, t), (x - c_skip * y) / c_out, **close)
    torch.testing.assert_close(scheduler.recover(z, raw, t)[0], c_skip * y + c_out * raw, **close)
    assert scheduler.inputs(z, t, sampling=False)[1].equal(told)


@DATA
def test_the_error_of_the_target_is_the_weighted_error_of_the_data(data):
    """lambda(sigma) = (sigma^2 + data^2) / (sigma data)^2 of table 1 is the weight `none` of this target."""
    scheduler, sigma = made(data), torch.tensor([0.01, 0.3, 2.0, 50.0], dtype=torch.float64)[:, None]
    x, n, raw = (torch.randn(4, FEATURES, dtype=torch.float64) for _ in range(3))
    t = scheduler.path.at(sigma)
    clean, _ = scheduler.recover(scheduler.mix(x, n, t), raw, t)
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    want = weight * (clean - x).square()
    torch.testing.assert_close((raw - scheduler.target(x, n, t)).square(), want, rtol=1e-3, atol=1e-4)


@DATA
def test_the_state_is_as_large_as_the_data_at_every_level(data):
    alpha, sigma = EDM(data).coefficients(torch.linspace(0, 1, 50))
    assert (alpha[0], sigma[0]) == (1, 0)  # a frame that is given is what it is
    torch.testing.assert_close(alpha.square() * data**2 + sigma.square(), torch.full((50,), data**2))


@pytest.mark.parametrize("steps", [1, 2, 18])
@pytest.mark.parametrize("options", [{}, {"sigma_min": 0.01, "sigma_max": 700.0, "rho": 5.0}])
def test_the_schedule_of_the_paper(steps, options):
    levels = made(0.5, **options).levels(steps)
    path = made(0.5, **options).path
    want = schedule(steps, path.sigma_min, path.sigma_max, path.rho)
    torch.testing.assert_close(path.noise(levels), want, rtol=2e-6, atol=0)
    theirs = diffusers.EDMEulerScheduler(**options)
    theirs.set_timesteps(steps)
    torch.testing.assert_close(path.noise(levels).float(), theirs.sigmas, rtol=2e-6, atol=0)
    if steps > 1:
        torch.testing.assert_close(made(0.5, **options).inputs(levels, levels)[1][:-1], theirs.timesteps.float())
        assert math.isclose(path.c_noise(levels[-1]), math.log(path.sigma_min) / 4, rel_tol=1e-5)  # of given frames


def trajectory(scheduler, prepare=lambda x: x) -> Tensor:
    """Where a scheduler of diffusers ends, in float64."""
    y = start(80.0)
    for timestep in scheduler.timesteps:
        raw = network(scheduler.scale_model_input(y, timestep), timestep).double()
        y = scheduler.step(raw, timestep, y, **prepare({})).prev_sample
    return y.float()


@DATA
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [1, STEPS, 20])
def test_runs_end_where_those_of_diffusers_do(data, solver, steps):
    kind = {"euler": diffusers.EDMEulerScheduler, "dpmpp_2m": diffusers.EDMDPMSolverMultistepScheduler}[solver]
    theirs = kind(sigma_data=data)
    theirs.set_timesteps(steps)
    got = ours(made(data), made(data).levels(steps), solver)
    torch.testing.assert_close(got, trajectory(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, STEPS, 25])
def test_target_v_is_euler_with_karras_sigmas_of_diffusers(steps):
    """As Stable Video Diffusion has it."""
    options = {"prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True}
    theirs = diffusers.EulerDiscreteScheduler(**options, sigma_min=0.002, sigma_max=80.0)
    theirs.set_timesteps(steps)
    got = ours(made(1.0, "v"), made(1.0, "v").levels(steps))
    torch.testing.assert_close(got, trajectory(theirs), rtol=1e-4, atol=1e-5)


@DATA
def test_heun_is_algorithm_1(data):
    """The paper's deterministic sampler, in its own y = x + sigma n."""
    sigmas, y = schedule(STEPS), start(80.0)
    for sigma, after in zip(sigmas, sigmas[1:], strict=False):
        d = (y - denoised(y, sigma, data)) / sigma
        euler = y + (after - sigma) * d
        if after > 0:
            again = (euler - denoised(euler, after, data)) / after
            euler = y + (after - sigma) * (d + again) / 2
        y = euler
    got = ours(made(data), made(data).levels(STEPS), "heun")
    torch.testing.assert_close(got, y.float(), rtol=1e-4, atol=1e-4)


@DATA
def test_ancestral_steps_keep_the_noise_of_their_level(data):
    """sigma_up of k-diffusion's ancestral step, as diffusers' EulerAncestralDiscreteScheduler has it."""
    sigmas, y, rand = schedule(STEPS), start(80.0), torch.Generator().manual_seed(7)
    for sigma, after in zip(sigmas, sigmas[1:], strict=False):
        up = (after**2 * (sigma**2 - after**2) / sigma**2).sqrt()
        x = denoised(y, sigma, data)
        noise = torch.randn(TOKENS, FEATURES, generator=rand)
        y = x + (after**2 - up**2).sqrt() * (y - x) / sigma + up * noise
    torch.testing.assert_close(ours(made(data), made(data).levels(STEPS), "ddpm"), y.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "ddpm", "heun", "dpmpp_2m", "dpmpp_2m_sde", "cogvideox_dpm", "unipc"])
def test_any_solver_sees_data_of_another_size_as_that_of_size_1(solver):
    """What is half as large, with half the noise, is the same problem but for c_noise (table 1 has sigma / data)."""
    deaf = lambda scheduler: lambda z, t: network(scheduler.inputs(z, t)[0], torch.zeros(()))  # noqa: E731
    one, half = made(1.0), made(0.5, sigma_min=0.001, sigma_max=40.0)
    ends = []
    for scheduler in (one, half):
        rand = torch.Generator().manual_seed(7)
        noise = lambda rand=rand: torch.randn(TOKENS, FEATURES, generator=rand)  # noqa: E731
        z, levels = scheduler.begin(start(1.0).float()), scheduler.levels(STEPS)[:, None]
        ends.append(solve(scheduler, deaf(scheduler), z, levels, LAYOUT, solver=solver, noise=noise))
    torch.testing.assert_close(ends[0], 2 * ends[1], rtol=1e-4, atol=1e-5)


@DATA
def test_inversion_knows_what_a_step_multiplies_by(data):
    scheduler, (t, s) = made(data), torch.tensor([[0.8], [0.75]])
    raw, z, move = torch.randn(1, FEATURES), torch.randn(1, FEATURES), 0.01
    near = [scheduler.step(raw, t, s, z + add) for add in (0.0, move)]
    torch.testing.assert_close(
        (near[1] - near[0]) / move, _gain(scheduler, t, s).expand(1, FEATURES), rtol=1e-3, atol=0
    )


# ------------------------------------------------------------------------------------------------------------ the draws

PATHS = {"edm": EDM(0.5), "rectified_flow": RectifiedFlow(), "cosine": Cosine(), "ddpm": DDPM()}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_draws_of_the_noise_are_log_normal(path):
    draws = TimestepSampling(kind="log_normal", mean=-1.2, std=1.2)
    t = draws.draw(torch.Generator().manual_seed(0), count=20_000, path=path)
    alpha, sigma = path.coefficients(path.snap(t).double())
    log = (sigma / alpha).log()
    assert t.dtype == torch.float32 and t.min() > 0 and t.max() <= 1
    assert abs(log.mean() + 1.2) < 0.03 and abs(log.std() - 1.2) < 0.03
    assert abs(((log + 1.2) < 1.2).float().mean() - 0.8413) < 0.01


def test_log_normal_noise_is_a_logit_normal_level_of_the_straight_line():
    draws = [
        TimestepSampling(kind=kind, mean=0.3, std=0.8).draw(torch.Generator().manual_seed(0), 9, 50, RectifiedFlow())
        for kind in ("log_normal", "logit_normal")
    ]
    torch.testing.assert_close(*draws)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_level_of_a_ratio(path):
    t = path.snap(torch.linspace(0.02, 0.98, 50))
    alpha, sigma = path.coefficients(t.double())
    torch.testing.assert_close(path.at(sigma / alpha), t, rtol=1e-4, atol=1e-5)
    assert path.at(torch.tensor(1e9)) > 0.999 and 0 <= path.at(torch.tensor(1e-9)) < 0.06


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "flow"}, "target 'flow' needs path 'rectified_flow' or 'cosine': with path 'edm' use edm, v"),
        ({"path": "ddpm", "target": "edm"}, "target 'edm' needs path 'edm', and path is 'ddpm'"),
        ({"path": "ddpm", "target": "v", "spacing": "karras"}, "spacing 'karras' needs path 'edm', and path is 'ddpm'"),
        ({"spacing": "karras", "lowest": 0.1}, "spacing 'karras' ends at sigma_min: leave lowest and terminal out"),
        ({"sigma_min": 90.0}, "sigma_min 90.0 and sigma_max 80.0: give 0 < min < max"),
        ({"whole_steps": 1000}, "whole_steps is of levels from 0 to 1, and path 'edm' tells"),
    ],
)
def test_what_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        LatentVideoScheduler(**{"path": "edm", "target": "edm", **options})
