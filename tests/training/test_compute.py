"""What a run computes in is kept with it, and said where it differs from what the machine or the user would choose."""

import json
import logging
from functools import partial

import pytest
import torch
from timm.optim import muon
from torch import nn

from latentvid import precision
from latentvid.config.sections import Optim
from latentvid.training import optim
from latentvid.training.compute import Compute, kept_in, settle
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.optim import make_optimizer
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

FAST, SLOW = precision.Speed(2.8, 1.4), precision.Speed(0.02, 0.08)
SHORT = ("data.tokens_per_pack=64", "data.packs_per_step=1", "train.steps=2", "checkpoint.every=1")  # bf16 is slow
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def speed(monkeypatch):
    precision._check_bf16.cache_clear()
    return lambda found: monkeypatch.setattr(precision, "_speed", lambda device: found)


def told(caplog) -> str:
    text = "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    caplog.clear()
    return text


@pytest.mark.parametrize(
    ("first", "then", "kept"), [(SLOW, FAST, "no"), pytest.param(FAST, SLOW, "bf16", marks=pytest.mark.slow)]
)
def test_auto_goes_on_in_what_the_run_began_with(first, then, kept, speed, dit_config, tmp_path, caplog):
    """Begun on one machine and gone on with on the other kind, it is the run that stayed on the first."""
    moved, stayed = tmp_path / "moved", tmp_path / "stayed"
    auto = ("train.mixed_precision=auto", "optim.schedule=constant", *SHORT)
    speed(first)
    train(dit_config(moved, *auto, "train.steps=1"), DitTask)
    train(dit_config(stayed, *auto), DitTask)
    assert json.loads((moved / "run.json").read_text())["computes_in"]["passes"] == kept
    assert not told(caplog)
    speed(then)
    train(dit_config(moved, *auto), DitTask)
    assert f"began in {'fp32' if kept == 'no' else 'bf16'} and goes on in it" in (said := told(caplog))
    assert f"{then.both:.2g} times as fast as fp32" in said
    assert [r["loss"] for r in read_metrics(moved)] == [r["loss"] for r in read_metrics(stayed)]
    state = json.loads((moved / "checkpoints/step-00000002/state.json").read_text())
    assert state["computes_in"] == {"passes": kept, "newton_schulz": kept}
    assert "mixed_precision: auto" in (moved / "config.yaml").read_text()  # what was asked, for another machine


@pytest.mark.slow
def test_another_type_by_name_is_taken_and_said(speed, dit_config, tmp_path, caplog):
    speed(SLOW)
    flat = ("optim.schedule=constant", *SHORT)
    train(dit_config(tmp_path, "train.mixed_precision=bf16", *flat, "train.steps=1"), DitTask)
    assert told(caplog).count("mixed_precision=bf16, but bf16 is on this cpu 0.04 times as fast") == 1
    train(dit_config(tmp_path, "train.mixed_precision=no", *flat), DitTask)
    assert "the steps so far were computed in bf16, those from here on are in fp32" in told(caplog)
    assert kept_in(tmp_path) == {"passes": "no", "newton_schulz": "no"}


def test_a_run_of_before_goes_on_in_what_its_configuration_said(speed, dit_config, tmp_path):
    speed(SLOW)
    train(dit_config(tmp_path, "train.mixed_precision=bf16", *SHORT, "train.steps=1"), DitTask)
    file = tmp_path / "checkpoints/step-00000001/state.json"
    state = json.loads(file.read_text())
    del state["computes_in"]
    file.write_text(json.dumps(state))
    config, compute = settle(dit_config(tmp_path, "train.mixed_precision=auto"), torch.device("cpu"))
    assert config.train.mixed_precision == "bf16" and compute == Compute("bf16", "no")
    for broken in ("[]", "{", '{"computes_in": 3}', '{"computes_in": {"passes": "fp8"}}'):
        file.write_text(broken)
        assert "passes" not in kept_in(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_newton_schulz_computes_in_what_it_is_told(dtype, monkeypatch):
    """And gives timm's function back."""
    usual, seen = muon.zeropower_via_newtonschulz, []

    def watched(*args, **kwargs):
        made = usual(*args, **kwargs)
        seen.append(made.dtype)
        return made

    monkeypatch.setattr(muon, "zeropower_via_newtonschulz", watched)
    net = nn.Linear(4, 6)
    optimizer = make_optimizer(net, Optim(name="muon", lr=1e-2), newton_schulz=dtype)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    before = net.weight.detach().clone()
    optimizer.step()
    assert seen == [dtype] and muon.zeropower_via_newtonschulz is watched
    assert net.weight.dtype == torch.float32 and not torch.equal(net.weight, before)


@pytest.mark.parametrize("shape", [(8, 200), (200, 8), (12, 24), (24, 3, 1, 3, 3)])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_newton_schulz_of_oblong_matrices_is_timms(shape, scale, monkeypatch):
    """In fp32 it goes through the smaller side's square; with directions that have next to no gradient, and none."""
    grad = torch.randn(shape)
    grad[0] *= 1e-4
    steps = []
    for kind in (optim.Muon, muon.Muon):
        p = nn.Parameter(torch.zeros(shape))
        optimizer = kind([p], lr=1.0, conv_mode="flatten", **({"newton_schulz": torch.float32} if not steps else {}))
        p.grad = grad * scale
        if kind is muon.Muon:
            usual = muon.zeropower_via_newtonschulz
            monkeypatch.setattr(muon, "zeropower_via_newtonschulz", partial(usual, dtype=torch.float32))
        optimizer.step()
        steps.append(p.detach())
    torch.testing.assert_close(*steps, atol=1e-4 * float(steps[1].abs().max()), rtol=0)
    assert steps[0].abs().max() > 0 or scale == 0
