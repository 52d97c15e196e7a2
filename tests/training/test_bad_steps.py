"""Steps whose gradient is no number, or too long: skipped, counted, or cut to the limit."""

import contextlib

import pytest
import torch
from comparing import same, state
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from latentvid.errors import UserError
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def with_nan(task: type, packs: set[int]) -> type:
    """`task`, whose loss is not a number at these packs, counted from 0."""

    class Nan(task):
        pack = -1

        def loss(self, model, pack, step):
            self.pack += 1
            losses, parts = super().loss(model, pack, step)
            return losses * (float("nan") if self.pack in packs else 1.0), parts

    return Nan


def test_a_bad_step_changes_nothing_and_the_run_goes_on(dit_config, tmp_path):
    config = dit_config(tmp_path, "train.steps=4", "checkpoint.every=1", "data.packs_per_step=1")
    train(config, with_nan(DitTask, {1, 2}))  # steps 2 and 3
    for name in ("model", "ema", "optimizer"):
        states = [state(tmp_path, step, name) for step in (1, 2, 3, 4)]
        assert [same(a, b) for a, b in zip(states, states[1:], strict=False)] == [True, True, False], name
    losses = [r["loss"] for r in read_metrics(tmp_path)]
    assert losses[1] is None and losses[2] is None and losses[0] > 0 and losses[3] > 0


def test_an_exploding_gradient_is_skipped_and_counted(dit_config, tmp_path):
    """Two of five steps lie above the limit, and change nothing; the log names them."""
    train(dit_config(tmp_path / "free", "train.steps=5", "checkpoint.every=1"), DitTask)
    norms = [r["grad_norm"] for r in read_metrics(tmp_path / "free")]
    limit = norms[0] * 0.999  # the first step is above it
    run = tmp_path / "limited"
    with contextlib.suppress(UserError):  # where the other steps lie above it too, nothing is exported
        train(dit_config(run, "train.steps=3", "checkpoint.every=1", f"optim.skip_norm={limit}"), DitTask)
    first = read_metrics(run)[0]
    assert first["grad_norm"] == norms[0] and first["skipped_steps"] == 1
    assert state(run, 1, "optimizer") == {} and not same(state(run, 1), state(tmp_path / "free", 1))
    skipped = read_metrics(run)[-1]["skipped_steps"]
    assert skipped == sum(r["grad_norm"] > limit for r in read_metrics(run)) >= 1
    with pytest.raises(UserError, match=r"2 steps in a row .*gradient norm above optim\.skip_norm=1e-09\)"):
        train(dit_config(tmp_path / "none", "train.max_bad_steps=2", "optim.skip_norm=1e-9"), DitTask)


def test_a_step_is_made_with_gradients_no_longer_than_the_limit(dit_config, tmp_path):
    """The log has the norms from before."""
    seen = []

    def look(optimizer, *_):
        seen.append(torch.stack([p.grad.norm() for g in optimizer.param_groups for p in g["params"]]).norm().item())

    hook = register_optimizer_step_pre_hook(look)
    limit = 0.05
    train(dit_config(tmp_path, f"optim.clip={limit}", "train.steps=3"), DitTask)
    hook.remove()
    assert min(record["grad_norm"] for record in read_metrics(tmp_path)) > 2 * limit
    assert seen == pytest.approx([limit] * 3, rel=1e-3)


def test_clip_0_is_no_clipping(dit_config, tmp_path):
    """Not a largest norm of 0, which would hold the weights where they are."""
    for name, clip in (("off", 0), ("far", 1e6)):
        train(dit_config(tmp_path / name, f"optim.clip={clip}", "train.steps=3", "checkpoint.every=0"), DitTask)
    off, far = tmp_path / "off", tmp_path / "far"
    assert [r["loss"] for r in read_metrics(off)] == [r["loss"] for r in read_metrics(far)]
    assert same(*(load_file(run / "checkpoints/step-00000003/model.safetensors") for run in (off, far)))


def test_bad_steps_in_a_row_stop_the_run(dit_config, tmp_path):
    config = dit_config(tmp_path, "train.steps=40", "checkpoint.every=1", "data.packs_per_step=1")
    bad = set(range(3, 12)) | set(range(14, 40))  # nine in a row are let pass
    with pytest.raises(UserError, match=r"10 steps in a row were skipped .*optim\.lr") as error:
        train(config, with_nan(DitTask, bad))
    assert len(read_metrics(tmp_path)) == 14 + 10 - 1
    assert "step-" in str(error.value)
