"""A student is trained under every strategy as on one process, through the stages of its halving."""

import json
import shutil

import pytest
import torch
from comparing import WEIGHTS, losses, state
from launching import ROOT, launch
from safetensors.torch import load_file

from latentvid.config.distillation import DistillConfig
from latentvid.config.parsing import load_config, save_config
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.distill.choice import distill_task
from latentvid.training.trainer import train

STAGES = (
    "stages=[{name: told, distill: {method: guidance}}, {name: two, distill: {method: progressive, steps: 2}},"
    " {name: ends, distill: {method: consistency, steps: 1, teacher_steps: 2}}]"
)


def settings_of(pipeline, latents, data) -> list[str]:
    settings = {
        "teacher": pipeline,
        "data.latents": latents,
        "data.workers": 0,
        "data.tokens_per_pack": 256,
        "data.packs_per_step": 4,
        "optim.lr": 1e-3,
        "train.mixed_precision": "no",
        "train.ema": 0.9,
        "train.steps": 2,
        "checkpoint.every": 2,
        "log.trackers": "[]",
        "validation.manifest": data / "val.jsonl",
        "validation.every": 2,
        "validation.samples": 2,
        "validation.bins": 2,
        "distill.endpoints": 2,
    }
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.mark.distributed
@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("recipe", ["ddp", "fsdp2", "zero2", "zero3"])
def test_students_train_alike(recipe, tiny_pipeline, tiny_latents, digits_data, tmp_path):
    runs = [tmp_path / name for name in ("one", "many")]
    lines = settings_of(tiny_pipeline, tiny_latents, digits_data)
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


DMD = ("distill.method=dmd", "distill.steps=2", "distill.critic_updates=2", "train.steps=4", "checkpoint.every=4")


@pytest.mark.distributed
@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("recipe, rollout", [("ddp", None), ("fsdp2", None), ("ddp", 2)])
def test_student_and_critic_train_alike(recipe, rollout, tiny_pipeline, tiny_latents, digits_data, tmp_path):
    runs = [tmp_path / name for name in ("one", "many")]
    folder = tiny_pipeline
    if rollout:
        folder = shutil.copytree(tiny_pipeline, tmp_path / "causal")
        file = folder / "transformer/config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"attention": "causal"}))
    lines = [*settings_of(folder, tiny_latents, digits_data), *DMD, "validation.every=4"]
    lines += [f"distill.rollout={rollout}"] * bool(rollout)
    one, many = (load_config(DistillConfig, None, [f"run.dir={run}", *lines]) for run in runs)
    train(one, distill_task)
    save_config(many, tmp_path / "config.yaml")
    launch(recipe, 2, [ROOT / "train" / "distill.py", tmp_path / "config.yaml"])
    ours, theirs = (read_metrics(run) for run in reversed(runs))
    for name in ("loss", "critic_loss", "critic_grad_norm", "matching_loss", "teacher_loss", "grad_norm"):
        values = [[record[name] for record in log if name in record] for log in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], rel=1e-4 if "norm" in name else 1e-5) and values[0], name
    made = [load_file(run / WEIGHTS) for run in reversed(runs)]
    for name in made[1]:
        torch.testing.assert_close(made[0][name], made[1][name], atol=1e-5, rtol=0)
    measured = [read_metrics(run, "validation.jsonl")[-1] for run in reversed(runs)]
    for name in ("loss", "critic_loss", "teacher_loss"):
        assert [b[name] for b in measured[0]["bins"]] == pytest.approx([b[name] for b in measured[1]["bins"]], rel=1e-4)


@pytest.mark.distributed
def test_a_critic_is_refused_where_gradients_are_clipped_together(tiny_pipeline, tiny_latents, digits_data, tmp_path):
    lines = [*settings_of(tiny_pipeline, tiny_latents, digits_data), *DMD]
    save_config(load_config(DistillConfig, None, [f"run.dir={tmp_path / 'run'}", *lines]), tmp_path / "config.yaml")
    done = launch("zero2", 2, [ROOT / "train" / "distill.py", tmp_path / "config.yaml"], check=False)
    said = " ".join(done.stderr.split())
    assert done.returncode and "ZeRO clips all gradients by one norm, but critic needs its own: launch DDP" in said
