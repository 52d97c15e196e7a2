"""Groups and rates of the optimisers."""

import copy
import math

import pytest
import torch
from torch import nn

from latentvid.config.sections import Optim
from latentvid.training.optim import Part, lr_factor, make_optimizer, set_lr


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (1, 3, 3))
        self.linear = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_vectors_are_never_decayed_and_frozen_weights_not_held(name):
    net = Net()
    optimizer = make_optimizer(net, Optim(name=name, lr=1e-2, weight_decay=0.1))
    groups = [{p.data_ptr() for p in group["params"]} for group in optimizer.param_groups]
    matrices = {p.data_ptr() for p in (net.conv.weight, net.linear.weight)}
    vectors = {p.data_ptr() for p in (net.conv.bias, net.linear.bias, net.norm.weight, net.norm.bias)}
    assert groups == [matrices, vectors]
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()  # without a gradient only decay moves anything
    for key, p in net.named_parameters():
        decayed = p.ndim >= 2 and p.requires_grad
        expected = before[key] * (1 - 1e-2 * 0.1) if decayed else before[key]
        torch.testing.assert_close(p.detach(), expected, atol=1e-7, rtol=0)


def test_muon_moves_matrices_by_their_direction_and_vectors_at_their_own_rate():
    """No step grows with the gradient; a matrix's has nearly equal singular values."""
    steps = {}
    for scale in (1.0, 1000.0):
        torch.manual_seed(0)
        net = Net()
        optimizer = make_optimizer(net, Optim(name="muon", lr=1e-2, vector_lr=3e-3))
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        for p in net.parameters():
            p.grad = torch.randn_like(p) * scale
        optimizer.step()
        steps[scale] = {name: before[name] - p.detach() for name, p in net.named_parameters()}
    torch.testing.assert_close(steps[1.0]["linear.weight"], steps[1000.0]["linear.weight"], atol=2e-4, rtol=0.05)
    for name in ("linear.weight", "conv.weight"):
        values = torch.linalg.svdvals(steps[1.0][name].flatten(1))
        assert values.max() / values.min() < 2.5
    for scale in steps:  # NAdamW's first step is 1 + beta1 times the rate
        torch.testing.assert_close(steps[scale]["norm.bias"].abs(), torch.full((5,), 1.9 * 3e-3), atol=1e-5, rtol=0)


def test_adamw_is_torchs_with_the_configurations_numbers():
    config = Optim(name="adamw", lr=1e-2, betas=(0.5, 0.6), weight_decay=0.3)
    net = Net()
    twin = copy.deepcopy(net)
    ours = make_optimizer(net, config)
    trained = [p for p in twin.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.3},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.5, 0.6))
    for _ in range(3):
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_adamw_steps_a_group_in_one_call():
    """Which is one kernel for many tensors on a GPU, where a loop would be about ten for each."""
    net = Net()
    ours = make_optimizer(net, Optim(name="adamw"))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    ours.step()  # makes the moments
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        ours.step()
    counts = {event.key: event.count for event in seen.key_averages() if event.key.startswith("aten::_fused_adamw")}
    assert counts == {"aten::_fused_adamw_": 2}  # of matrices, and of vectors
    assert not any(event.key in ("aten::addcdiv_", "aten::addcmul_", "aten::lerp_") for event in seen.key_averages())


def test_muon_has_the_configurations_momentum_and_nesterovs():
    optimizer = make_optimizer(Net(), Optim(name="muon", lr=1e-2, momentum=0.7, betas=(0.5, 0.6)))
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"], tuple(group["betas"])) == (0.7, True, (0.5, 0.6))


def test_warm_up_then_cosine_to_the_end():
    config = Optim(warmup=10, final=0.1)
    factors = [lr_factor(step, 110, config) for step in range(110)]
    assert factors[0] == 0.1 and factors[4] == 0.5 and factors[9] == factors[10] == 1.0
    assert factors[60] == pytest.approx(0.1 + 0.9 * 0.5)  # half-way of the cosine
    assert factors[35] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert all(a > b for a, b in zip(factors[10:], factors[11:], strict=False))
    assert factors[-1] == pytest.approx(0.1, abs=1e-3) and lr_factor(500, 110, config) == pytest.approx(0.1)


def test_constant_and_no_warm_up():
    config = Optim(warmup=0, schedule="constant")
    assert {lr_factor(step, 5, config) for step in range(5)} == {1.0}
    assert lr_factor(0, 5, Optim(warmup=0)) == 1.0
    assert lr_factor(0, 5, Optim(warmup=100)) == 0.01  # a run shorter than its warm-up


def test_warm_up_stable_decay():
    """Up, then level, then 1 - sqrt down to `final` at the last step; the level part is of any length."""
    config = Optim(warmup=10, schedule="wsd", decay_steps=25, final=0.1)
    factors = [lr_factor(step, 110, config) for step in range(110)]
    assert factors[4] == 0.5 and set(factors[9:85]) == {1.0}
    assert factors[109] == pytest.approx(0.1) and factors[85] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(1 / 25)))
    assert factors[90] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(6 / 25)))
    assert all(a > b for a, b in zip(factors[84:], factors[85:], strict=False))
    assert [lr_factor(step, 200, config) for step in range(85)] == factors[:85]  # a longer run has not jumped
    usual = Optim(warmup=0, schedule="wsd", final=0.0)
    assert lr_factor(899, 1000, usual) == 1 > lr_factor(900, 1000, usual) and lr_factor(999, 1000, usual) == 0
    assert lr_factor(0, 1, usual) == 0.0 and lr_factor(5, 1, usual) == 0.0
    assert lr_factor(2, 3, Optim(warmup=0, schedule="wsd", decay_steps=100)) == pytest.approx(0.01)


def test_inverse_square_root():
    config = Optim(warmup=10, schedule="inverse_sqrt")
    assert lr_factor(4, 1, config) == 0.5 and lr_factor(9, 1, config) == 1.0  # it knows no end
    assert [lr_factor(n - 1, 7, config) for n in (40, 90, 1000)] == pytest.approx([1 / 2, 1 / 3, 1 / 10])
    later = Optim(warmup=10, schedule="inverse_sqrt", decay_from=100)
    assert lr_factor(99, 1, later) == 1.0 and lr_factor(399, 1, later) == pytest.approx(0.5)
    assert lr_factor(3, 1, Optim(warmup=0, schedule="inverse_sqrt")) == pytest.approx(0.5)


def test_what_another_schedule_does_not_have_is_said():
    with pytest.raises(ValueError, match="decay_steps=5 is of schedule=wsd, and schedule is cosine"):
        Optim(decay_steps=5)
    with pytest.raises(ValueError, match="decay_from=5 is of schedule=inverse_sqrt"):
        Optim(schedule="wsd", decay_from=5)


def test_every_group_follows_its_own_peak():
    optimizer = make_optimizer(Net(), Optim(name="muon", lr=1e-2, vector_lr=4e-3))
    config = Optim(warmup=4, schedule="constant")
    assert set_lr(optimizer.param_groups, 0, 100, config) == 0.25e-2
    assert [group["lr"] for group in optimizer.param_groups] == [0.25e-2, 1e-3]
    set_lr(optimizer.param_groups, 3, 100, config)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 4e-3]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_part_apart_sleeps_unchanged_until_its_start_and_warms_up_from_there(name):
    """Under any optimiser its steps are AdamW's; gradients of zero while it sleeps move nothing, decay included."""
    net, config = Net(), Optim(name=name, lr=1e-2, weight_decay=0.1, warmup=2, schedule="constant")
    optimizer = make_optimizer(net, config, [Part("linear", 4e-3, start=3)])
    group = optimizer.param_groups[-1]
    assert [id(p) for p in group["params"]] == [id(p) for p in net.linear.parameters()] and group["part"] == "linear"
    assert group["weight_decay"] == 0
    before, rates = net.linear.weight.detach().clone(), []
    for step in range(6):
        set_lr(optimizer.param_groups, step, 100, config)
        rates.append(group["lr"])
        for p in net.parameters():
            p.grad = torch.full_like(p, float(step >= 3))
        optimizer.step()
        assert torch.equal(net.linear.weight, before) == (step < 3)
    assert rates == [0, 0, 0, 2e-3, 4e-3, 4e-3]


def test_state_survives_json_and_keeps_stepping():
    """Peaks travel with the groups, so a resumed optimiser follows the same schedule."""
    net = Net()
    optimizer = make_optimizer(net, Optim(name="adamw", lr=1e-2))
    set_lr(optimizer.param_groups, 0, 100, Optim(warmup=10))
    other = make_optimizer(Net(), Optim(name="adamw", lr=1e-2))
    other.load_state_dict(optimizer.state_dict())
    set_lr(other.param_groups, 9, 100, Optim(warmup=10))
    assert [group["lr"] for group in other.param_groups] == [1e-2, 1e-2]
