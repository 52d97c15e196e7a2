"""Whole trajectories equal diffusers' schedulers run by their own; rows keep to their own levels, whatever beside."""

from functools import partial

import diffusers
import pytest
import torch
from torch import Tensor

from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.diffusion.solvers import SOLVERS, solve
from latentvid.errors import UserError
from latentvid.packing import Packed

TOKENS, FEATURES = 5, 6
PREDICTION_TYPE = {"eps": "epsilon", "v": "v_prediction", "x": "sample", "flow": "flow_prediction"}
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
EACH = pytest.mark.parametrize("solver", list(SOLVERS))
ALL = [("rectified_flow", t, {}) for t in ("flow", "v", "x")] + [("cosine", t, {}) for t in ("flow", "v", "x")]
ALL += [("ddpm", t, {}) for t in ("eps", "v", "x")] + [("ddpm", t, {"zero_terminal_snr": True}) for t in ("v", "x")]
ALL += [("ddpm", "x", {"betas": "uniform"}), ("edm", "edm", {"spacing": "karras", "sigma_data": 0.5})]


def network(layout: Packed):
    """A fixed random map of noised tokens and levels that mixes the tokens of a sample, not samples."""
    rand = torch.Generator().manual_seed(3)
    w, m, b = (torch.randn(*size, generator=rand) / 3 for size in ((6, 6), (6, 6), (6,)))

    def predict(z: Tensor, t: Tensor) -> Tensor:
        z = z.float()
        others = z.new_zeros(layout.segments, z.shape[1]).index_add(0, layout.segment, z)
        mixed = z @ w + 0.2 * others.index_select(0, layout.segment) @ m
        return torch.tanh(mixed + 3 * t.index_select(0, layout.frame)[:, None] * b)

    return predict


def noises(count: int) -> list[Tensor]:
    rand = torch.Generator().manual_seed(7)
    return [torch.randn(TOKENS, FEATURES, generator=rand) for _ in range(count)]


def ours(scheduler: LatentVideoScheduler, levels: Tensor, solver: str) -> Tensor:
    """The states [K+1,T,P] of a run; the network is given each level once, in a row of its own."""
    layout = Packed.of([(1, 1, TOKENS)])
    states = [torch.randn(TOKENS, FEATURES, generator=torch.Generator().manual_seed(4))]
    drawn = iter(noises(len(levels)))

    def keep(z: Tensor, t: Tensor) -> Tensor:
        states.append(z)
        return z

    if solver == "heun":  # calls `after` within a step as well, but has no memory: every step by itself
        for i in range(len(levels) - 1):
            step = levels[i : i + 2, None]
            states.append(solve(scheduler, network(layout), states[-1], step, layout, solver=solver))
    else:
        draw = partial(next, drawn)
        solve(scheduler, network(layout), states[0], levels[:, None], layout, solver=solver, noise=draw, after=keep)
    return torch.stack(states)


def theirs(scheduler, levels: Tensor, *, calls: int = 1, scaled: bool = False, noisy: bool = False) -> Tensor:
    """The same of a diffusers scheduler: `calls` a step but the last; `scaled` ones hold z / alpha.

    That is in float64, since z / alpha is 157 z at first and float32 loses 2e-5 of z on the way to x.
    """
    predict = network(Packed.of([(1, 1, TOKENS)]))
    z = torch.randn(TOKENS, FEATURES, generator=torch.Generator().manual_seed(4))
    drawn = iter(noises(len(levels)))
    at = [0] + [i for i in range(1, len(levels) - 1) for _ in range(calls)]  # level of each call
    assert len(at) == len(scheduler.timesteps)
    scale = [(1 + float(s) ** 2) ** 0.5 if scaled else 1.0 for s in scheduler.sigmas]
    z, states = (z.double() if scaled else z) * scale[0], [z]
    for k, (i, timestep) in enumerate(zip(at, scheduler.timesteps, strict=True)):
        seen = scheduler.scale_model_input(z, timestep) if scaled else z
        extra = {"variance_noise": next(drawn)} if noisy else {}
        z = scheduler.step(predict(seen, levels[i][None]), timestep, z, **extra).prev_sample
        if calls == 1 or k % 2 == 1 or k == len(at) - 1:
            states.append((z / scale[k + 1]).float())
    return torch.stack(states)


def assert_same(got: Tensor, want: Tensor) -> None:
    """Within 1e-5 of each state's size: states that are divided by a small alpha are large."""
    assert got.shape == want.shape
    assert ((got - want).abs().amax((1, 2)) < 1e-5 * want.abs().amax((1, 2)).clamp_min(1)).all()


def exact(scheduler, steps: int):
    """The scheduler with its table in float64, as ours is (in float32 products lose 1e-5), set to so many steps."""
    cumprod = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    assert (cumprod - scheduler.alphas_cumprod).abs().max() < 1e-5
    scheduler.alphas_cumprod = cumprod
    scheduler.set_timesteps(steps)
    return scheduler


VARIANCE_PRESERVING = pytest.mark.parametrize("target", ["eps", "v", "x"])
STEPS = pytest.mark.parametrize("steps", [1, 2, 8, 20])


@VARIANCE_PRESERVING
@pytest.mark.parametrize("steps", [1, 5, 8, 20])  # 2 steps multiply alpha, and what float32 rounds off, 44-fold
def test_heun_is_that_of_diffusers(target, steps):
    reference = exact(diffusers.HeunDiscreteScheduler(**BETAS, prediction_type=PREDICTION_TYPE[target]), steps)
    scheduler = LatentVideoScheduler("ddpm", target)
    levels = scheduler.levels(steps)
    assert_same(ours(scheduler, levels, "heun"), theirs(reference, levels, calls=2, scaled=True))


@pytest.mark.parametrize("steps", [1, 5, 8, 20])  # theirs divides by a last sigma of 1e-3, which few steps show
def test_heun_of_the_flow_is_that_of_diffusers(steps):
    reference = diffusers.FlowMatchHeunDiscreteScheduler()
    reference.set_timesteps(steps)
    levels = torch.cat([reference.sigmas[:1], reference.sigmas[1:-1:2], reference.sigmas[-1:]])
    assert_same(ours(LatentVideoScheduler(), levels, "heun"), theirs(reference, levels, calls=2))


@pytest.mark.parametrize("noisy", [False, True])
@VARIANCE_PRESERVING
@STEPS
def test_dpm_solver_is_that_of_diffusers(target, steps, noisy):
    kind = "sde-dpmsolver++" if noisy else "dpmsolver++"
    made = diffusers.DPMSolverMultistepScheduler(**BETAS, prediction_type=PREDICTION_TYPE[target], algorithm_type=kind)
    scheduler = LatentVideoScheduler("ddpm", target)
    levels = scheduler.levels(steps)
    got = ours(scheduler, levels, "dpmpp_2m_sde" if noisy else "dpmpp_2m")
    assert_same(got, theirs(exact(made, steps), levels, noisy=noisy))


@pytest.mark.parametrize("noisy", [False, True])
@STEPS
def test_dpm_solver_of_the_flow_is_that_of_diffusers(steps, noisy):
    kind = "sde-dpmsolver++" if noisy else "dpmsolver++"
    reference = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", algorithm_type=kind
    )
    reference.set_timesteps(steps)
    levels = LatentVideoScheduler().levels(steps, start=0.999)
    torch.testing.assert_close(levels, reference.sigmas)
    got = ours(LatentVideoScheduler(), levels, "dpmpp_2m_sde" if noisy else "dpmpp_2m")
    assert_same(got, theirs(reference, levels, noisy=noisy))


@VARIANCE_PRESERVING
@STEPS
def test_unipc_is_that_of_diffusers(target, steps):
    made = diffusers.UniPCMultistepScheduler(**BETAS, prediction_type=PREDICTION_TYPE[target])
    scheduler = LatentVideoScheduler("ddpm", target)
    levels = scheduler.levels(steps)
    assert_same(ours(scheduler, levels, "unipc"), theirs(exact(made, steps), levels))


@STEPS
def test_unipc_of_the_flow_is_that_of_diffusers(steps):
    reference = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    levels = LatentVideoScheduler().levels(steps)
    reference.set_timesteps(sigmas=levels[:-1].double().numpy())
    assert_same(ours(LatentVideoScheduler(), levels, "unipc"), theirs(reference, levels))


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
@pytest.mark.parametrize("steps", [3, 20])  # the last step of a short run is of first order
def test_a_run_that_ends_in_noise_is_that_of_diffusers(solver, steps):
    kind = "sde-dpmsolver++" if solver == "dpmpp_2m_sde" else "dpmsolver++"
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "final_sigmas_type": "sigma_min"}
    made = diffusers.UniPCMultistepScheduler if solver == "unipc" else diffusers.DPMSolverMultistepScheduler
    reference = made(**options) if solver == "unipc" else made(**options, algorithm_type=kind)
    levels = torch.linspace(0.9, 0.2, steps + 1)
    reference.set_timesteps(steps)
    reference.sigmas = levels.double()
    assert_same(ours(LatentVideoScheduler(), levels, solver), theirs(reference, levels, noisy=kind[0] == "s"))


# ------------------------------------------------------------------------------------------------------ rows and packs

LAYOUT = Packed.of([(3, 1, 2), (2, 1, 1)])  # 5 rows, 8 tokens


def staggered(scheduler: LatentVideoScheduler) -> Tensor:
    """Levels [7,5]: a given row, one that waits, one that ends early, two of their own; then the second sample's."""
    run = scheduler.levels(4)
    late, early = torch.cat([run[:1], run[:1], run]), torch.cat([run, run[-1:], run[-1:]])
    whole = scheduler.levels(6)
    return torch.stack([torch.zeros(7), late, early, whole, whole], 1)


def run(scheduler, levels, layout, solver, z, after=None) -> Tensor:
    drawn = [torch.Generator().manual_seed(i) for i in range(layout.segments)]

    def noise() -> Tensor:
        return torch.cat([torch.randn(n, 6, generator=g) for n, g in zip(layout.lengths, drawn, strict=True)])

    return solve(scheduler, network(layout), z, levels, layout, solver=solver, noise=noise, after=after)


@EACH
@pytest.mark.parametrize(("path", "target", "options"), ALL)
def test_rows_go_by_their_own_levels(solver, path, target, options):
    """Rows that wait, end early or are given do not move meanwhile, and a sample alone is what it is in the pack."""
    scheduler = LatentVideoScheduler(path, target, **options)
    levels, z = staggered(scheduler), torch.randn(8, 6)
    states = [z]
    whole = run(scheduler, levels, LAYOUT, solver, z, lambda z, t: states.append(z) or z)
    assert whole.isfinite().all()
    assert torch.equal(whole[:2], z[:2])
    if solver != "heun":
        assert torch.equal(states[2][2:4], z[2:4]) and torch.equal(states[4][4:6], whole[4:6])
    alone = run(scheduler, levels[:, :3], Packed.of([(3, 1, 2)]), solver, z[:6])
    torch.testing.assert_close(alone, whole[:6], rtol=1e-5, atol=1e-5)


@EACH
def test_rows_of_one_level_equal_rows_in_groups(solver):
    """That other rows have other levels changes nothing for a row but through the network, which sees samples apart."""
    scheduler = LatentVideoScheduler()
    layout, z = Packed.of([(1, 1, 2)] * 3), torch.randn(6, 6)
    a, b = scheduler.levels(5), scheduler.levels(5, start=0.7)
    mixed = run(scheduler, torch.stack([a, b, a], 1), layout, solver, z)
    for levels, rows in ((a, [0, 1, 4, 5]), (b, [2, 3])):
        same = run(scheduler, levels[:, None].expand(6, 3), layout, solver, z)
        torch.testing.assert_close(mixed[rows], same[rows], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in ("ddpm", "dpmpp_2m_sde", "cogvideox_dpm")])
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.8, 0.1)])
def test_a_row_that_pauses_goes_on_as_if_it_had_not(solver, start, end):
    scheduler = LatentVideoScheduler("cosine", "v")
    layout, z = Packed.of([(1, 1, 2)] * 2), torch.randn(4, 6)
    levels = end + (start - end) * scheduler.levels(18)
    pauses = levels[torch.tensor([0, 0, 0, 1, 2, 2, *range(3, 10), 9, 9, *range(10, 19), 18])]
    beside = scheduler.levels(len(pauses) - 1)
    got = run(scheduler, torch.stack([pauses, beside], 1), layout, solver, z)
    plain = run(scheduler, levels[:, None].expand(19, 2), layout, solver, z)
    torch.testing.assert_close(got[:2], plain[:2], rtol=1e-6, atol=1e-6)


@EACH
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize(("path", "target", "options"), ALL)
def test_a_perfect_network_is_followed_in_few_steps(solver, path, target, options, steps):
    """Where the network knows x, each solver ends at x, from noise alone too."""
    scheduler = LatentVideoScheduler(path, target, **options)
    layout, x, eps = Packed.of([(1, 1, 4)]), torch.randn(4, 6), torch.randn(4, 6)

    def predict(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = scheduler.path.coefficients(t)
        return scheduler.target(x, (z - alpha * x) / sigma, t)

    z = scheduler.mix(x, eps, torch.ones(()))
    levels = scheduler.levels(steps)[:, None]
    got = solve(scheduler, predict, z, levels, layout, solver=solver, noise=lambda: torch.randn(4, 6))
    torch.testing.assert_close(got, x, rtol=1e-3, atol=1e-3)


@EACH
def test_more_steps_than_the_path_has_levels(solver):
    scheduler = LatentVideoScheduler("ddpm", "v", num_train_timesteps=10)
    z = run(scheduler, scheduler.levels(25)[:, None].expand(26, 5), LAYOUT, solver, torch.randn(8, 6))
    assert z.isfinite().all() and z.abs().max() < 100


@EACH
def test_the_network_sees_states_as_they_were_changed_after_each_step(solver):
    """Also Heun's second look within a step: what is known is in its place there."""
    layout, seen = Packed.of([(1, 1, TOKENS)]), []

    def predict(z: Tensor, t: Tensor) -> Tensor:
        seen.append(z)
        return z

    z, levels = torch.randn(TOKENS, FEATURES), torch.tensor([[0.9], [0.6], [0.3], [0.0]])
    noise = lambda: torch.randn(TOKENS, FEATURES)  # noqa: E731
    after = lambda z, t: torch.full_like(z, 7.0)  # noqa: E731
    solve(LatentVideoScheduler(), predict, z, levels, layout, solver=solver, noise=noise, after=after)
    assert torch.equal(seen[0], z) and all((each == 7).all() for each in seen[1:])


def test_unknown_solvers_are_named():
    with pytest.raises(
        UserError, match="solver 'rk4': one of euler, ddpm, heun, dpmpp_2m, dpmpp_2m_sde, cogvideox_dpm, unipc"
    ):
        run(LatentVideoScheduler(), torch.zeros(2, 5), LAYOUT, "rk4", torch.zeros(8, 6))
