"""Training with given frames and weighted noise levels: what is drawn, what counts, what is refused."""

import json

import pytest
import torch

from latentvid.data.plan.plan import Draw
from latentvid.diffusion.masks import GivenFrames
from latentvid.errors import UserError
from latentvid.sequence import SequenceGroup
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

EACH = ("first", "prefix", "ends", "random", "independent")


def task_of(config) -> DitTask:
    return DitTask(config, torch.device("cpu"))


def pack_levels(task: DitTask, numbers: range) -> list[torch.Tensor]:
    """Noise levels [f] of each sample of one pack."""
    pack = task.make_pack([Draw(number, number % len(task.grids)) for number in numbers])
    return list(pack.timestep.split([f for f, _, _ in pack.layout.grid]))


@pytest.mark.parametrize("name", EACH)
def test_each_strategy_gives_its_frames(name, dit_config, tmp_path):
    task = task_of(dit_config(tmp_path / "run", "given.plain=0", f"given.{name}=1"))
    seen = set()
    for t in pack_levels(task, range(60)):
        given = (t == 0).tolist()
        if len(t) == 1:
            assert given == [False]  # images are plain
            continue
        seen.add(tuple(given))
        assert not all(given)
        unknown = t[t > 0]
        assert (unknown.unique().numel() == 1) == (name != "independent")
        if name == "first":
            assert given == [True] + [False] * (len(t) - 1)
        elif name == "prefix":
            assert given[0] and sorted(given, reverse=True) == given
        elif name == "ends":
            assert [i for i, g in enumerate(given) if g] == [0, len(t) - 1]
        elif name == "random":
            assert any(given)
        else:
            assert not any(given)
    assert len(seen) > (2 if name in ("prefix", "random") else 0)


def test_shares_are_kept_and_do_not_move_other_draws(dit_config, tmp_path):
    plain = task_of(dit_config(tmp_path / "run"))
    mixed = task_of(dit_config(tmp_path / "run", "given.plain=3", "given.first=1"))
    pairs = list(zip(*(pack_levels(task, range(400)) for task in (plain, mixed)), strict=True))
    share = [bool((b == 0).any()) for a, b in pairs if len(b) > 1]
    assert abs(sum(share) / len(share) - 0.25) < 0.08
    assert all((torch.where(b == 0, a, b) == a).all() for a, b in pairs)


def test_given_frames_train_and_travel_with_the_export(dit_config, tmp_path):
    config = dit_config(tmp_path / "run", "given.first=1", "given.independent=1", "weighting.kind=min_snr")
    train(config, DitTask)
    index = json.loads((tmp_path / "run" / "pipeline" / "model_index.json").read_text())
    assert index["given"] == ["plain", "first", "independent"]


def test_given_tokens_have_no_loss_and_no_gradient(dit_config, tmp_path):
    task = task_of(dit_config(tmp_path / "run", "given.plain=0", "given.first=1"))
    pack = task.make_pack([Draw(i, i) for i in range(8)])
    t = pack.timestep.index_select(0, pack.layout.frame)
    prediction = torch.zeros_like(pack.noise, requires_grad=True)
    losses, _ = task.loss(lambda *_, fps: prediction, pack, 0)
    losses.sum().backward()
    assert (prediction.grad[t == 0] == 0).all() and (prediction.grad[t > 0] != 0).any(1).all()


def test_the_weight_multiplies_each_samples_loss(dit_config, tmp_path):
    def losses(*overrides: str) -> tuple[DitTask, torch.Tensor, torch.Tensor]:
        task = task_of(dit_config(tmp_path / "run", *overrides))
        pack = task.make_pack([Draw(i, i) for i in range(12)])
        return task, task.loss(lambda z, *_, fps: torch.zeros_like(z), pack, 0)[0], pack

    task, plain, pack = losses()
    _, weighted, _ = losses("weighting.kind=min_snr", "weighting.gamma=2")
    level = torch.stack([t[0] for t in pack.timestep.split([f for f, _, _ in pack.layout.grid])])
    snr = ((1 - level) / level).square()
    want = plain * torch.minimum(snr, torch.tensor(2.0)) * level.square()  # an error d in flow is sigma d in x
    torch.testing.assert_close(weighted, want)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("weighting.kind=snr", "scheduler={target: x}"), "weighting: weighting 'snr' has no bound for target 'x'"),
        (("scheduler={path: ddpm, target: flow}",), "target 'flow' needs path 'rectified_flow' or 'cosine'"),
        (("scheduler={path: cosine, target: eps}",), "target 'eps' leaves x unknown at t = 1 of path 'cosine'"),
        (("scheduler={path: ddpm, target: eps, zero_terminal_snr: true}",), "target 'eps' leaves x unknown"),
        (("scheduler={path: ddpm, target: eps, betas: uniform}",), "target 'eps' leaves x unknown"),
        (("scheduler={path: ddpm, target: v, betas: log}",), "betas 'log': one of linear, scaled_linear, logarithmic"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_by_name(overrides, message, dit_config, tmp_path):
    with pytest.raises(UserError, match=message):
        task_of(dit_config(tmp_path / "run", *overrides))


PATHS_AND_TARGETS = (
    "{path: rectified_flow, target: flow}",
    "{path: rectified_flow, target: v}",
    "{path: rectified_flow, target: x}",
    "{path: cosine, target: flow}",
    "{path: cosine, target: v}",
    "{path: cosine, target: x}",
    "{path: ddpm, target: eps}",
    "{path: ddpm, target: v, betas: uniform}",
    "{path: ddpm, target: x, betas: scaled_linear, zero_terminal_snr: true}",
)
UNBOUNDED = [(s, "snr") for s in PATHS_AND_TARGETS if "target: x" in s and "ddpm" not in s]
SENSIBLE = [
    (scheduler, kind)
    for scheduler in PATHS_AND_TARGETS
    for kind in ("none", "snr", "min_snr", "sigmoid")
    if (scheduler, kind) not in UNBOUNDED
]


@pytest.mark.parametrize(("scheduler", "kind"), SENSIBLE)
def test_combinations_that_make_sense_train(scheduler, kind, dit_config, tmp_path):
    overrides = [f"scheduler={scheduler}", f"weighting.kind={kind}", "timesteps.kind=mode", "timesteps.base_tokens=64"]
    task = task_of(dit_config(tmp_path / "run", *overrides))
    pack = task.make_pack([Draw(i, i) for i in range(10)])
    losses, _ = task.loss(task.model, pack, 0)
    losses.sum().backward()
    assert losses.isfinite().all() and (losses >= 0).all() and losses.sum() > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.model.parameters())


def test_impossible_shares_are_named():
    with pytest.raises(ValueError, match="must be at least 0, and one of them above"):
        GivenFrames(plain=0.0)
    with pytest.raises(ValueError, match="given.first=-1: must be a finite number from 0 to"):
        GivenFrames(first=-1.0)


@pytest.mark.parametrize("attention", ["factorised", "causal"])
def test_other_attention_trains_and_balances_by_its_own_cost(attention, dit_config, tmp_path):
    full, other = (task_of(dit_config(tmp_path / "run", f"model.attention={name}")) for name in ("full", attention))
    pack = other.make_pack([Draw(i, i) for i in range(10)])
    other.loss(other.model, pack, 0)[0].sum().backward()
    clip = [i for i in range(len(other.grids)) if other.grids[i][0] > 1]
    assert (other.costs[clip] < full.costs[clip]).all() and (other.costs >= other.tokens).all()
    other.sequence = SequenceGroup("group", 0, 2)
    with pytest.raises(UserError, match=f"sequence_parallel is 2, but model.attention is '{attention}'"):
        other.new_model()
