"""Steps equal diffusers' schedulers over whole trajectories; noise keeps its marginals; given rows stay."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor

from latentvid.diffusion.scheduler import LatentVideoScheduler

PREDICTION_TYPE = {"eps": "epsilon", "v": "v_prediction", "x": "sample"}
SHAPE = (5, 6)
LEGAL = [("rectified_flow", "flow"), ("rectified_flow", "v"), ("rectified_flow", "x")]
LEGAL += [("cosine", "flow"), ("cosine", "v"), ("cosine", "x")]
LEGAL += [("ddpm", "v"), ("ddpm", "eps"), ("ddpm", "x")]
LEGAL += [("edm", "edm"), ("edm", "eps")]
EACH = pytest.mark.parametrize(("path", "target"), LEGAL)


def network():
    """A fixed random map of (noised tokens, noise level)."""
    rand = torch.Generator().manual_seed(3)
    w, b = torch.randn(6, 6, generator=rand) / 3, torch.randn(6, generator=rand)
    return lambda z, t: torch.tanh(z @ w + 3 * t * b)


def ours(scheduler: LatentVideoScheduler, steps: int, noises: list[Tensor] | None = None, eta: float = 1.0) -> Tensor:
    """The states [steps + 1, T, P] of a sampling run."""
    net, t = network(), scheduler.levels(steps)
    z = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))]
    for i in range(steps):
        noise = None if noises is None else noises[i]
        z.append(scheduler.step(net(z[-1], t[i]), t[i], t[i + 1], z[-1], noise=noise, eta=eta))
    return torch.stack(z)


def theirs(scheduler, level, step) -> Tensor:
    """The same of a diffusers scheduler: `level` of its timesteps, `step(scheduler, prediction, timestep, i, z)`."""
    net = network()
    z = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))]
    for i, timestep in enumerate(scheduler.timesteps):
        z.append(step(scheduler, net(z[-1], level(timestep)), timestep, i, z[-1]).prev_sample)
    return torch.stack(z)


def assert_same(got: Tensor, want: Tensor) -> None:
    """Within 1e-5 of each state's size: states that are divided by a small alpha are large."""
    assert got.shape == want.shape
    assert ((got - want).abs().amax((1, 2)) < 1e-5 * want.abs().amax((1, 2)).clamp_min(1)).all()


def exact(scheduler):
    """The diffusers scheduler with its table in float64, as ours is: in float32 cumulative products lose 1e-5."""
    c = scheduler.config
    betas = torch.linspace(c.beta_start, c.beta_end, c.num_train_timesteps, dtype=torch.float64)
    cumprod = (1 - betas).cumprod(0)
    assert (cumprod - scheduler.alphas_cumprod).abs().max() < 1e-5
    scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = betas, 1 - betas, cumprod
    scheduler.one = torch.ones((), dtype=torch.float64)
    return scheduler


BETAS = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing", clip_sample=False)


@pytest.mark.parametrize("target", ["eps", "v", "x"])
@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_steps_equal_ddim(target, steps, eta):
    noises = [torch.randn(SHAPE) for _ in range(steps)]
    reference = exact(diffusers.DDIMScheduler(**BETAS, prediction_type=PREDICTION_TYPE[target]))
    reference.set_timesteps(steps)

    def step(scheduler, y, t, i, z):
        return scheduler.step(y, t, z, eta=eta, variance_noise=noises[i] if eta else None)

    want = theirs(reference, lambda t: (t + 1) / 1000, step)
    got = ours(LatentVideoScheduler("ddpm", target), steps, noises if eta else None, eta)
    assert_same(got, want)


@pytest.mark.parametrize(("target", "steps"), [("eps", 10), ("v", 10), ("x", 10), ("eps", 1000)])
def test_steps_equal_ddpm(target, steps):
    reference = exact(
        diffusers.DDPMScheduler(**BETAS, prediction_type=PREDICTION_TYPE[target], variance_type="fixed_small")
    )
    reference.set_timesteps(steps)
    rand = torch.Generator().manual_seed(5)
    want = theirs(
        reference, lambda t: (t + 1) / 1000, lambda scheduler, y, t, i, z: scheduler.step(y, t, z, generator=rand)
    )
    rand = torch.Generator().manual_seed(5)
    noises = [torch.randn(SHAPE, generator=rand) for _ in range(steps)]
    assert_same(ours(LatentVideoScheduler("ddpm", target), steps, noises), want)


@pytest.mark.parametrize("target", ["v", "x"])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_steps_from_noise_alone_equal_ddim_with_zero_terminal_snr(target, steps):
    reference = diffusers.DDIMScheduler(
        **BETAS, prediction_type=PREDICTION_TYPE[target], rescale_betas_zero_snr=True, set_alpha_to_one=True
    )
    scheduler = LatentVideoScheduler("ddpm", target, zero_terminal_snr=True)
    assert (reference.alphas_cumprod - scheduler.path.alphas_cumprod[1:]).abs().max() < 1e-5
    reference.alphas_cumprod = scheduler.path.alphas_cumprod[1:]
    reference.set_timesteps(steps)
    want = theirs(reference, lambda t: (t + 1) / 1000, lambda scheduler, y, t, i, z: scheduler.step(y, t, z))
    assert_same(ours(scheduler, steps), want)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_steps_equal_ddim_of_cogvideox(scale):
    table = dict(beta_start=0.00085, beta_end=0.012, snr_shift_scale=scale)
    reference = diffusers.CogVideoXDDIMScheduler(
        **{**BETAS, **table, "beta_schedule": "scaled_linear"},
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    reference.set_timesteps(10)
    scheduler = LatentVideoScheduler("ddpm", "v", betas="scaled_linear", zero_terminal_snr=True, **table)
    want = theirs(reference, lambda t: (t + 1) / 1000, lambda scheduler, y, t, i, z: scheduler.step(y, t, z))
    assert_same(ours(scheduler, 10), want)


@pytest.mark.parametrize("steps", [2, 7, 64])
def test_steps_equal_those_of_mochi(steps):
    """Their scheduler counts the other way, and their network predicts x - eps."""
    reference = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    reference.set_timesteps(sigmas=linear_quadratic_schedule(steps, 0.025))
    scheduler = LatentVideoScheduler(spacing="linear_quadratic")
    torch.testing.assert_close(scheduler.levels(steps), 1 - reference.sigmas, rtol=0, atol=1e-6)
    want = theirs(reference, lambda t: 1 - t / 1000, lambda scheduler, y, t, i, z: scheduler.step(-y, t, z))
    assert_same(ours(scheduler, steps), want)


@pytest.mark.parametrize("path", ["ddpm", "cosine"])
def test_the_step_for_v_is_a_rotation(path):
    """z_s = cos(phi_s - phi_t) z + sin(phi_s - phi_t) v with tan(phi) = sigma / alpha (Salimans & Ho 2022, eq. 34)."""
    scheduler = LatentVideoScheduler(path, "v")
    t, s = torch.tensor([1.0, 0.8, 0.5, 0.3, 0.02])[:, None], torch.tensor([0.9, 0.1, 0.498, 0.0, 0.01])[:, None]
    z, v = torch.randn(SHAPE), torch.randn(SHAPE)
    phi_t, phi_s = (torch.atan2(sigma, alpha) for alpha, sigma in map(scheduler.path.coefficients, (t, s)))
    want = (phi_s - phi_t).cos() * z + (phi_s - phi_t).sin() * v
    torch.testing.assert_close(scheduler.step(v, t, s, z), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 5, 30])
def test_steps_equal_flow_matching_euler(shift, steps):
    reference = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    scheduler = LatentVideoScheduler(shift=shift)
    torch.testing.assert_close(scheduler.levels(steps), reference.sigmas)
    want = theirs(reference, lambda t: t / 1000, lambda scheduler, y, t, i, z: scheduler.step(y, t, z))
    assert_same(ours(scheduler, steps), want)


@EACH
def test_mixing_and_recovering_are_inverse(path, target):
    scheduler = LatentVideoScheduler(path, target)
    x, eps, t = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])[:, None]
    assert torch.equal(scheduler.mix(x, eps, torch.zeros(5, 1)), x)
    got = scheduler.recover(scheduler.mix(x, eps, t), scheduler.target(x, eps, t), t)
    for a, b in zip(got, (x, eps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", ["rectified_flow", "cosine", "ddpm"])
def test_any_target_gives_any_other(path):
    """Each legal target's prediction, turned into x and eps and into the next target, comes round."""
    targets = [target for name, target in LEGAL if name == path]
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])[:, None]
    z, first = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    prediction = first
    for here, there in zip(targets, targets[1:] + targets[:1], strict=True):
        x, eps = LatentVideoScheduler(path, here).recover(z, prediction, t)
        prediction = LatentVideoScheduler(path, there).target(x, eps, t)
    torch.testing.assert_close(prediction, first, rtol=1e-4, atol=1e-4)


@EACH
def test_a_perfect_prediction_moves_along_the_path(path, target):
    scheduler = LatentVideoScheduler(path, target)
    x, eps = torch.randn(SHAPE), torch.randn(SHAPE)
    t, s = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1])[:, None], torch.tensor([0.6, 0.1, 0.499, 0.0, 0.05])[:, None]
    got = scheduler.step(scheduler.target(x, eps, t), t, s, scheduler.mix(x, eps, t))
    torch.testing.assert_close(got, scheduler.mix(x, eps, s), rtol=1e-4, atol=1e-4)


@EACH
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_noise_added_by_a_step_keeps_the_marginal(path, target, eta):
    """With the true x and eps a step from t to s leaves alpha_s x + sigma_s (unit noise), on either path."""
    scheduler = LatentVideoScheduler(path, target)
    x, eps, noise = torch.full((40_000, 1), 2.0), torch.randn(40_000, 1), torch.randn(40_000, 1)
    for t, s in ((1.0, 0.8), (0.8, 0.7), (0.5, 0.4), (0.5, 0.1), (0.02, 0.01)):
        t, s = torch.tensor(t), torch.tensor(s)
        z = scheduler.step(scheduler.target(x, eps, t), t, s, scheduler.mix(x, eps, t), noise=noise, eta=eta)
        alpha, sigma = scheduler.path.coefficients(s)
        torch.testing.assert_close(z.mean(), alpha * 2, rtol=0, atol=0.02)
        torch.testing.assert_close(z.std(), sigma, rtol=0.02, atol=1e-3)


@EACH
@pytest.mark.parametrize("noisy", [False, True])
def test_rows_that_do_not_change_level_do_not_move(path, target, noisy):
    scheduler = LatentVideoScheduler(path, target)
    t = torch.tensor([0.0, 0.5, 1.0, 0.5, 1.0])[:, None]
    s = torch.tensor([0.0, 0.5, 1.0, 0.4, 0.9])[:, None]
    z, prediction = torch.randn(SHAPE), torch.randn(SHAPE)
    moved = scheduler.step(prediction, t, s, z, noise=torch.randn(SHAPE) if noisy else None)
    assert torch.equal(moved[:3], z[:3])
    assert moved.isfinite().all() and (moved[3:] != z[3:]).all()


def test_levels_run_from_noise_to_clean_over_levels_that_the_path_has():
    levels = LatentVideoScheduler("ddpm", "v", num_train_timesteps=10).levels(4)
    torch.testing.assert_close(levels, torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0]))
    levels = LatentVideoScheduler(shift=2.0).levels(4)
    torch.testing.assert_close(levels, torch.tensor([1.0, 6 / 7, 2 / 3, 2 / 5, 0.0]))


def test_the_config_travels(tmp_path):
    LatentVideoScheduler("ddpm", "eps", beta_end=0.015, num_train_timesteps=500, shift=2.0).save_pretrained(tmp_path)
    loaded = LatentVideoScheduler.from_pretrained(tmp_path)
    assert loaded.config.target == "eps" and loaded.config.shift == 2.0
    assert loaded.path.steps == 500 and loaded.path.beta_end == 0.015


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_tokens": 9, "log_shift": [0.5, 1.0], "shift_tokens": [4, 9]}, "base_tokens and log_shift both say"),
        ({"log_shift": [0.5, 1.0]}, "log_shift and shift_tokens belong together"),
        ({"path": "linear"}, "path 'linear': one of rectified_flow, cosine, ddpm"),
        ({"spacing": "quadratic"}, "spacing 'quadratic': one of .*linear_quadratic"),
        ({"target": "noise"}, "target 'noise': one of eps, x, v, flow"),
        (
            {"path": "cosine", "target": "eps"},
            "target 'eps' leaves x unknown .* of path 'cosine', .*: use flow, v or x",
        ),
        (
            {"path": "ddpm", "target": "eps", "zero_terminal_snr": True},
            "target 'eps' leaves x unknown .* path 'ddpm', .*: use v or x, or betas that leave some signal",
        ),
        (
            {"path": "ddpm", "target": "flow"},
            "target 'flow' needs path 'rectified_flow' or 'cosine': with path 'ddpm' use v, eps",
        ),
        (
            {"target": "eps"},
            "target 'eps' leaves x unknown at t = 1 of path 'rectified_flow', which is noise alone: use",
        ),
    ],
)
def test_refused_combinations_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LatentVideoScheduler(**arguments)
