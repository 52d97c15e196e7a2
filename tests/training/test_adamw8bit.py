"""AdamW with moments of 8 bits: AdamW's steps but for the moments' rounding, and nothing lost where a run goes on."""

import copy

import pytest
import torch
from small_tasks import Stop, stopping
from torch import nn

from latentvid.config.sections import Optim
from latentvid.errors import UserError
from latentvid.training import adamw8bit
from latentvid.training.dryrun.memory import state_bytes
from latentvid.training.launch import make_accelerator
from latentvid.training.optim import make_optimizer
from latentvid.training.parallel.pieces import PieceReader
from latentvid.training.parallel.strategy import Fsdp2
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

EIGHT = "optim.name=adamw8bit"


@pytest.fixture
def package():
    pytest.importorskip("bitsandbytes")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(96, 128)  # 48 blocks, and a vector that stays fp32
        self.odd = nn.Linear(83, 61, bias=False)  # the last of 20 blocks is not full
        self.conv = nn.Conv3d(8, 24, 3).to(memory_format=torch.channels_last_3d)


def both(steps: int, decay: float = 0.3) -> list[nn.Module]:
    """A network after so many steps of AdamW in 8 bits, and of torch's, with the same gradients."""
    torch.manual_seed(0)
    net = Net()
    nets = [net, copy.deepcopy(net)]
    names = ("adamw8bit", "adamw")
    optimizers = [
        make_optimizer(net, Optim(name=name, lr=1e-2, betas=(0.9, 0.99), weight_decay=decay))
        for net, name in zip(nets, names, strict=True)
    ]
    for _ in range(steps):
        for ours, theirs in zip(*(net.parameters() for net in nets), strict=True):
            ours.grad = torch.randn(ours.shape)  # of another order in memory than a convolution's weights
            theirs.grad = torch.empty_like(theirs).copy_(ours.grad)
        for optimizer in optimizers:
            optimizer.step()
    return nets


def test_its_first_step_is_adamws(package):
    """The moments are zero before it, which codes say exactly."""
    ours, theirs = both(1)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_later_steps_are_adamws_but_for_rounded_moments(package):
    ours, theirs = both(20)
    torch.manual_seed(0)
    start = Net()
    for (name, a), b, s in zip(ours.named_parameters(), theirs.parameters(), start.parameters(), strict=True):
        if a.numel() < adamw8bit.LEAST:
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
            continue
        moved, off = (b - s).norm(), (a - b).norm()
        assert 0 < off < 0.05 * moved, name


def test_what_it_holds_is_what_the_estimate_says(package):
    net = both(1)[0]
    optimizer = make_optimizer(net, Optim(name="adamw8bit"))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p, state in optimizer.state.items():
        held = sum(x.numel() * x.element_size() for x in state.values() if torch.is_tensor(x))
        assert held == adamw8bit.moment_bytes(p)
    table = {strategy: held for strategy, _, held in state_bytes(net, [], "adamw8bit", 1)}
    assert set(table) == {"single", "DDP"}  # no other can cut it
    assert table["single"].optimizer == sum(map(adamw8bit.moment_bytes, net.parameters()))
    whole = next(held for _, _, held in state_bytes(net, [], "adamw", 1)).optimizer
    assert table["single"].optimizer < 0.3 * whole


def test_a_run_that_goes_on_equals_one_that_was_never_stopped(package, dit_config, tmp_path, fresh_accelerate):
    model = "model={depth: 1, width: 96, heads: 2}"
    options = (EIGHT, model, "train.steps=4", "checkpoint.every=2", "train.mixed_precision=no")
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(dit_config(whole, *options), DitTask)
    with pytest.raises(Stop):
        train(dit_config(again, *options), stopping(after=5))
    train(dit_config(again, *options), DitTask)
    for kind in ("model", "optimizer"):
        one, other = (PieceReader(run / "checkpoints" / "step-00000004", kind) for run in (whole, again))
        assert sorted(one.names()) == sorted(other.names())
        for name in one.names():
            shape = one.shape(name)
            assert torch.equal(one.full(name, shape), other.full(name, shape)), name
    scaled = [name.removesuffix("_scale") for name in one.names() if name.endswith(":exp_avg_scale")]
    assert scaled
    for name in scaled:  # codes, not what they stand for
        assert one.full(name, one.shape(name)).dtype == torch.uint8


def test_it_is_refused_where_the_state_is_cut(dit_config, tmp_path):
    class Plugin:
        fsdp_version = 2

    strategy = object.__new__(Fsdp2)
    strategy.accelerator = type("A", (), {"state": type("S", (), {"fsdp_plugin": Plugin})})
    with pytest.raises(UserError, match="adamw8bit has one scale for 256 .* FSDP2 cuts .*: use adamw, or launch DDP"):
        strategy._set_up(dit_config(tmp_path, EIGHT))


def test_a_missing_package_is_named_before_anything_is_made(dit_config, tmp_path, monkeypatch):
    monkeypatch.setattr(adamw8bit, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package bitsandbytes: pip install 'latentvid\[quantised\]'"):
        make_accelerator(dit_config(tmp_path, EIGHT))
