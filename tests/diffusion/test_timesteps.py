"""Noise levels drawn for training and laid out for sampling."""

import math

import pytest
import torch

from latentvid.diffusion.timesteps import TimestepSampling, sampling_levels, shift, shift_for


def draws(n: int = 4000, **changes) -> torch.Tensor:
    rand = torch.Generator().manual_seed(0)
    sampling = TimestepSampling(**changes)
    return torch.stack([sampling.draw(rand) for _ in range(n)])


def test_uniform_draws():
    t = draws()
    assert t.min() > 0 and t.max() <= 1
    assert torch.quantile(t, torch.linspace(0.1, 0.9, 9)).sub(torch.linspace(0.1, 0.9, 9)).abs().max() < 0.03


def test_logit_normal_draws():
    logit = torch.logit(draws(kind="logit_normal", mean=0.7, std=0.4).double())
    assert abs(logit.mean() - 0.7) < 0.03 and abs(logit.std() - 0.4) < 0.03


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.8, 1.29, 1.75])
def test_mode_draws_have_the_density_of_the_formula(scale):
    """p(t) = |du/dt| with t = f(u) of Esser et al. 2024, eq. 20, f by numeric inversion on a grid."""
    u = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    f = 1 - u - scale * ((math.pi / 2 * u).cos() ** 2 - 1 + u)
    assert (f.diff() < 1e-12).all()  # falls, for these scales
    edges = torch.linspace(0, 1, 11, dtype=torch.float64)
    below = torch.stack([(f <= edge).double().mean() for edge in edges])  # P(t <= edge), u being uniform
    rand = torch.Generator().manual_seed(1)
    t = TimestepSampling(kind="mode", scale=scale).draw(rand, count=40_000)
    assert t.min() > 0 and t.max() <= 1
    share = torch.histogram(t.double(), edges).hist / len(t)
    assert (share - below.diff()).abs().max() < 0.01


def test_the_shift_grows_with_the_root_of_the_tokens():
    assert shift_for(3.0, None, 100) == shift_for(3.0, 400, None) == 3.0
    assert math.isclose(shift_for(3.0, 400, 100), 6.0) and math.isclose(shift_for(3.0, 100, 100), 3.0)
    sampling, rand = TimestepSampling(shift=3.0, base_tokens=100), torch.Generator()
    torch.testing.assert_close(
        sampling.draw(rand.manual_seed(0), tokens=400, count=9),
        shift(TimestepSampling().draw(rand.manual_seed(0), count=9), 6.0),
    )


def test_draws_are_shifted_as_the_levels_are():
    torch.testing.assert_close(draws(50, shift=3.0), shift(draws(50), 3.0))


def test_draws_belong_to_their_generator():
    assert torch.equal(draws(5), draws(5))


def test_shift_keeps_the_ends_and_undoes_itself():
    t = torch.linspace(0, 1, 11)
    moved = shift(t, 3.0)
    assert (moved[0], moved[-1]) == (0, 1) and (moved[1:-1] > t[1:-1]).all()
    assert math.isclose(moved[5], 0.75)
    torch.testing.assert_close(shift(moved, 1 / 3), t)
    assert torch.equal(shift(t, 1.0), t)


def test_sampling_levels():
    torch.testing.assert_close(sampling_levels(4), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    t = sampling_levels(7, 5.0)
    assert (t[0], t[-1]) == (1, 0) and (t.diff() < 0).all() and len(t) == 8 and t.dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_levels_that_fall_slowly_first(steps):
    t = sampling_levels(steps, 1.0, "linear_quadratic")
    assert (t[0], t[-1]) == (1, 0) and (t.diff() < 0).all() and len(t) == steps + 1
    assert steps == 1 or math.isclose(t[steps // 2], 0.975, rel_tol=1e-6)


LINE = {"log_shift": (0.95, 2.05), "shift_tokens": (1024, 4096)}  # of LTX


def test_the_log_of_the_shift_is_on_a_line_of_tokens():
    for tokens, want in ((1024, 0.95), (2560, 1.5), (4096, 2.05), (7168, 3.15)):
        assert math.isclose(shift_for(1.0, tokens, None, **LINE), math.exp(want))
    assert math.isclose(shift_for(2.0, 2560, None, **LINE), 2.0 * math.exp(1.5))
    assert shift_for(2.0, None, None, **LINE) == 2.0
    sampling = TimestepSampling(kind="logit_normal", std=0.6, **LINE)
    rand = torch.Generator()
    for tokens, mean in ((512, 0.7666667), (2560, 1.5), (9000, 2.05)):  # no more above the second number
        want = TimestepSampling(kind="logit_normal", std=0.6, mean=mean).draw(rand.manual_seed(0), count=50)
        torch.testing.assert_close(sampling.draw(rand.manual_seed(0), tokens=tokens, count=50), want)


def ltx_trainer(normal: torch.Tensor, tokens: int) -> torch.Tensor:
    """Levels of normal draws as LTX-2's trainer has them, in its own steps (timestep_samplers.py)."""
    mu = 0.95 + (min(tokens, 4096) - 1024) * (2.05 - 0.95) / (4096 - 1024)
    low, high = torch.sigmoid(torch.tensor([mu - 2.5758, mu + 3.0902], dtype=torch.float64))
    raw = (torch.sigmoid(normal.double() + mu) - low) / (high - low)
    return torch.where(raw >= 1e-3, raw, 2e-3 - raw).clamp(0, 1).float()


@pytest.mark.parametrize("tokens", [300, 2000, 6000])
def test_stretched_levels_are_those_of_ltx(tokens):
    count, rand = 20_000, torch.Generator()
    normal = torch.randn(count, generator=rand.manual_seed(0))
    want = ltx_trainer(normal, tokens)
    sampling = {"kind": "logit_normal", **LINE, "stretch": True}
    got = TimestepSampling(**sampling).draw(rand.manual_seed(0), tokens, count)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert (got == 1.0).any() and got.min() >= 1e-3 - 1e-6
    mixed = TimestepSampling(**sampling, uniform=0.1).draw(rand.manual_seed(0), tokens, count)
    others = mixed[(mixed - want).abs() > 1e-5]
    assert abs(len(others) / count - 0.1) < 0.01 and others.min() >= 1e-3 and others.max() <= 1
    assert abs(float(others.mean()) - 0.5005) < 0.02 and abs(float(others.var()) - 1 / 12) < 0.01


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="0 sampling steps: at least 1"):
        sampling_levels(0)
    for scale in (-1.1, 1.8):
        with pytest.raises(ValueError, match="timesteps.scale=.*: must be a finite number from -1 to 1.75194"):
            TimestepSampling(kind="mode", scale=scale)
    with pytest.raises(ValueError, match="timesteps.base_tokens=0: must be a whole number from 1 to"):
        TimestepSampling(base_tokens=0)
    with pytest.raises(ValueError, match="base_tokens and log_shift both say how the shift grows"):
        TimestepSampling(base_tokens=9, log_shift=(0.5, 1.0), shift_tokens=(4, 9))
    with pytest.raises(ValueError, match=r"shift_tokens \(9, 9\): the first number of tokens must be below the second"):
        TimestepSampling(log_shift=(0.5, 1.0), shift_tokens=(9, 9))
    with pytest.raises(ValueError, match="stretch is for kind logit_normal, and kind is uniform"):
        TimestepSampling(stretch=True)
    with pytest.raises(ValueError, match=r"timesteps.log_shift\[1\]=29: must be a finite number from -20 to 20"):
        TimestepSampling(log_shift=(0.5, 29.0), shift_tokens=(4, 9))
    with pytest.raises(ValueError, match="log_shift and shift_tokens belong together"):
        TimestepSampling(log_shift=(0.5, 1.0))
    for wrong in ({"shift": 0.0}, {"std": -1.0}):
        with pytest.raises(ValueError, match="must be a finite number"):
            TimestepSampling(**wrong)
