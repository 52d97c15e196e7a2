"""Targets, their inversion, and a loss that counts only what was noised."""

import pytest
import torch

from latentvid.diffusion.objective import Weighting, loss_per_sample, recover, target_coefficients
from latentvid.diffusion.path import DDPM, EDM, Cosine, RectifiedFlow
from latentvid.packing import Packed, spans

LEGAL = [
    *[("rectified_flow", RectifiedFlow(), target) for target in ("flow", "v", "x", "eps")],
    *[("cosine", Cosine(), target) for target in ("flow", "v", "x", "eps")],
    *[("ddpm", DDPM(), target) for target in ("v", "eps", "x")],
    *[("edm", EDM(0.5), target) for target in ("edm", "v", "eps")],
    *[("zero", DDPM(zero_terminal_snr=True), target) for target in ("v", "x")],
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
    if target == "eps" and not isinstance(path, DDPM | EDM):
        assert not got_x[1].any()


@EACH
def test_clean_rows_are_known_whatever_the_network_says(path, target):
    z, wrong = torch.randn(3, 6), torch.randn(3, 6)
    x, _ = recover(z, wrong, target, path, torch.zeros(3, 1))
    torch.testing.assert_close(x, z, rtol=1e-6, atol=0)  # the cosine path's flow divides by pi / 2


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


def test_known_tokens_do_not_count_at_whatever_level():
    """Of a whole pack, and of its pieces, whose losses add up."""
    layout = Packed.of([(2, 1, 3), (1, 2, 2)])
    prediction, target = torch.randn(layout.tokens, 5), torch.randn(layout.tokens, 5)
    timestep, weight = torch.tensor([0.2, 0.4, 0.9]), torch.tensor([1.0, 2.0, 3.0])
    known = torch.tensor([1, 0, 0, 0, 1, 1, 0, 1, 0, 0]).bool()
    counts = torch.tensor([1, 2, 1])
    error = (prediction - target).square().mean(-1) * weight.index_select(0, layout.frame)
    want = torch.stack([error[[1, 2, 3]].mean(), error[[6, 8, 9]].mean()])
    torch.testing.assert_close(loss_per_sample(prediction, target, timestep, layout, weight, known, counts), want)
    total = torch.zeros(2)
    for span in spans(layout.lengths, 3):
        here = slice(span.start, span.stop)
        rows = slice(0 if span.first == 0 else 2, 2 if span.last == 1 else 3)
        parts = prediction[here], target[here], timestep[rows], layout.piece(span), weight[rows]
        total[span.first : span.last] += loss_per_sample(*parts, known[here], counts[rows])
    torch.testing.assert_close(total, want)


def test_loss_of_bf16_predictions_is_taken_in_float32():
    layout = Packed.of([(1, 16, 16)])
    prediction, target = torch.randn(256, 8).bfloat16(), torch.randn(256, 8)
    got = loss_per_sample(prediction, target, torch.tensor([0.5]), layout)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got[0], (prediction.float() - target).square().mean())


# ---------------------------------------------------------------------------------------------------------- weighting


def errors(path, target, t):
    """Squared errors in (target, x, eps) of a wrong prediction at a fixed z, by conversion and not by coefficients."""
    x, eps, z, y = noised(path, target, t)
    wrong = y + torch.randn_like(y)
    got_x, got_eps = recover(z.double(), wrong.double(), target, path, t)
    right_x, right_eps = recover(z.double(), y.double(), target, path, t)
    pairs = ((y.double(), wrong.double()), (right_x, got_x), (right_eps, got_eps))
    return [(a - b).square().mean(1) for a, b in pairs]


@EACH
def test_weights_turn_the_loss_of_any_target_into_that_of_x_or_eps(path, target):
    """snr is the plain loss of eps, min_snr that of x by min(SNR, gamma), sigmoid that of eps by its sigmoid."""
    t = torch.tensor([0.05, 0.2, 0.5, 0.77, 0.9])[:, None]
    of_target, of_x, of_eps = errors(path, target, t)
    alpha, sigma = (c[:, 0].double() for c in path.coefficients(t))
    snr = (alpha / sigma) ** 2
    wants = {
        Weighting(kind="snr"): of_eps,
        Weighting(kind="min_snr", gamma=3.0): snr.clamp_max(3.0) * of_x,
        Weighting(kind="sigmoid", bias=-1.5): torch.sigmoid(-1.5 - snr.log()) * of_eps,
        Weighting(): of_target,
    }
    for weighting, want in wants.items():
        got = weighting(target, path, t[:, 0]) * of_target
        torch.testing.assert_close(got, want, rtol=2e-3, atol=1e-9)


def test_min_snr_of_each_target_by_hand():
    """The published forms (Hang et al. 2023): min(SNR, g) for x, over SNR for eps, over SNR + 1 for v."""
    t = torch.tensor([0.1, 0.4, 0.8])
    alpha, sigma = DDPM().coefficients(t)
    snr = (alpha / sigma) ** 2
    weighting = Weighting(kind="min_snr", gamma=5.0)
    for target, over in (("x", 1.0), ("eps", snr), ("v", snr + 1)):
        torch.testing.assert_close(weighting(target, DDPM(), t), snr.clamp_max(5.0) / over, rtol=1e-4, atol=1e-7)


@EACH
@pytest.mark.parametrize("kind", ["none", "snr", "min_snr", "sigmoid"])
def test_weights_are_finite_and_not_negative_at_both_ends(path, target, kind):
    weight = Weighting(kind=kind)(target, path, torch.tensor([0.0, 1e-3, 0.999, 1.0]))
    assert weight.isfinite().all() and (weight >= 0).all()


def test_a_weight_without_bound_is_refused_by_name():
    for path in (RectifiedFlow(), Cosine()):
        with pytest.raises(ValueError, match="weighting 'snr' has no bound for target 'x' .* use min_snr or sigmoid"):
            Weighting(kind="snr").check("x", path)
        Weighting(kind="snr").check("v", path)
    Weighting(kind="snr").check("x", DDPM())
    with pytest.raises(ValueError, match="weighting.gamma=0: must be a finite number above 0"):
        Weighting(gamma=0)


def test_rows_weigh_in_the_loss():
    layout = Packed.of([(2, 1, 2), (1, 1, 3)])
    prediction, target = torch.randn(layout.tokens, 5), torch.randn(layout.tokens, 5)
    weight = torch.tensor([2.0, 0.5, 3.0])
    error = (prediction - target).square().mean(-1)
    want = torch.stack([(2 * error[:2].sum() + 0.5 * error[2:4].sum()) / 4, 3 * error[4:].mean()])
    got = loss_per_sample(prediction, target, torch.tensor([0.1, 0.9, 0.5]), layout, weight)
    torch.testing.assert_close(got, want)
