"""A student is trained under every strategy as on one process, through the stages of its halving."""

import pytest
import torch
from comparing import losses, state
from launching import ROOT, launch

from latentvid.config.distillation import DistillConfig
from latentvid.config.parsing import load_config, save_config
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.distill.task import distill_task
from latentvid.training.trainer import train

STAGES = (
    "stages=[{name: told, distill: {method: guidance}}, {name: two, distill: {method: progressive, steps: 2}},"
    " {name: ends, distill: {method: consistency, steps: 1, teacher_steps: 2}}]"
)


@pytest.mark.distributed
@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("recipe", ["ddp", "fsdp2", "zero2", "zero3"])
def test_students_train_alike(recipe, tiny_pipeline, tiny_latents, digits_data, tmp_path):
    settings = {
        "teacher": tiny_pipeline,
        "data.latents": tiny_latents,
        "data.workers": 0,
        "data.tokens_per_pack": 256,
        "data.packs_per_step": 4,
        "optim.lr": 1e-3,
        "train.mixed_precision": "no",
        "train.ema": 0.9,
        "train.steps": 2,
        "checkpoint.every": 2,
        "log.trackers": "[]",
        "validation.manifest": digits_data / "val.jsonl",
        "validation.every": 2,
        "validation.samples": 2,
        "validation.bins": 2,
        "distill.endpoints": 2,
    }
    runs = [tmp_path / name for name in ("one", "many")]
    lines = [f"{key}={value}" for key, value in settings.items()]
    one, many = (load_config(DistillConfig, None, [f"run.dir={run}", *lines, STAGES]) for run in runs)
    train(one, distill_task)
    save_config(many, tmp_path / "config.yaml")
    launch(recipe, 2, [ROOT / "train" / "distill.py", tmp_path / "config.yaml"])
    assert len(losses(runs[0])) == 6 and losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-5)
    for ours, theirs in zip(*(read_metrics(run, "validation.jsonl") for run in reversed(runs)), strict=True):
        for name in ("loss", "student_loss", "teacher_loss"):
            assert [b[name] for b in ours["bins"]] == pytest.approx([b[name] for b in theirs["bins"]], rel=1e-5)
        ends = [row["scores"]["end_distance"]["value"] for row in (ours, theirs)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-4) and ends[0] > 0
    if recipe == "ddp":  # whose checkpoints are whole
        ours, theirs = (state(run, 6) for run in reversed(runs))
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)
