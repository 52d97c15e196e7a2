"""Every strategy trains like one process, and goes on from any other's checkpoint: real launches of two processes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from comparing import WEIGHTS, assert_measured_alike, difference, losses
from launching import ROOT, launch
from safetensors.torch import load_file

from latentvid.config.parsing import load_config, save_config
from latentvid.training.export import export_run
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.table import STAGES
from latentvid.training.trainer import train

OPTIONS = (
    "data.packs_per_step=4",
    "optim.lr=1e-3",
    "optim.schedule=constant",
    "samples.every=3",
    "samples.weights=[ema,raw]",
    "validation.every=3",
    "validation.samples=11",
    "validation.bins=4",
    "validation.scores=[flicker]",
    "validation.clips=3",
    'samples.prompts=["a red 7 moves up", "a blue 3", "a green 2"]',
    "log.draws=true",
    "model.fps_condition=true",
    "model.rope_fps=12",
    "data.fps_dropout=0.3",
)


@pytest.fixture(scope="module")
def single(tmp_path_factory, dit_config, digits_data, tiny_latents) -> Path:
    """Six steps on one process, which accumulates four packs a step; checkpoints and samples at 3 and 6.

    The limit on gradient norms lies between those of the first two steps, so that one of these is skipped.
    """
    free, run = tmp_path_factory.mktemp("free"), tmp_path_factory.mktemp("single")
    train(dit_config(free, *OPTIONS, "validation.every=0", "validation.scores=[]", "train.steps=2"), DitTask)
    limit = sum(record["grad_norm"] for record in read_metrics(free)) / 2
    held_out = (f"validation.latents={tiny_latents}", f"validation.manifest={digits_data / 'train.jsonl'}")
    train(dit_config(run, *OPTIONS, *held_out, f"optim.skip_norm={limit}"), DitTask)
    assert 1 <= read_metrics(run)[-1]["skipped_steps"] <= 5
    return run


def begun_by(run: Path, copy: Path) -> Path:
    """A copy of a run as it was after step 3."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000006")
    shutil.rmtree(copy / "pipeline")
    return copy


def assert_same(run: Path, single: Path) -> None:
    """Losses to 1e-5, in training and on held-out data, exported weights to 1e-4, the same samples drawn and shown."""
    difference(run, single).check()
    assert len(losses(run)) == 6
    names = [sorted(p.name for p in (r / "samples").iterdir()) for r in (run, single)]
    assert names[0] == names[1] and len(names[0]) == 2 * 2 * (3 + 1)
    ours, theirs = (read_metrics(r, "validation.jsonl") for r in (run, single))
    assert [(r["step"], r["weights"]) for r in ours] == [(s, w) for s in (3, 6) for w in ("ema", "raw")]
    assert_measured_alike(run, single)
    for a, b in zip(ours, theirs, strict=True):
        assert a["scores"]["flicker"]["value"] == pytest.approx(b["scores"]["flicker"]["value"], rel=1e-2)


@pytest.mark.distributed
@pytest.mark.parametrize("recipe", ["fsdp2", pytest.param("zero2", marks=pytest.mark.slow), "zero3"])
def test_a_strategy_trains_like_one_process_and_takes_over_its_run(recipe, single, dit_config, tmp_path):
    """And hands its own back to one process."""
    before = load_config(type(dit_config(single)), single / "config.yaml")
    limited = (
        *OPTIONS,
        f"optim.skip_norm={before.optim.skip_norm}",
        f"validation.latents={before.validation.latents}",
        f"validation.manifest={before.validation.manifest}",
    )
    config = dit_config(tmp_path / "new", *limited)
    save_config(config, tmp_path / "config.yaml")
    over = begun_by(single, tmp_path / "over")
    script = ROOT / "train" / "train_dit.py"
    launch(
        recipe,
        2,
        [script, tmp_path / "config.yaml"],
        [script, tmp_path / "config.yaml", f"--run.dir={over}"],
    )
    assert_same(tmp_path / "new", single)
    assert_same(over, single)
    last = json.loads((over / "checkpoints/step-00000006/state.json").read_text())
    assert last["written_by"] == {"fsdp2": "FSDP2 x2", "zero2": "ZeRO-2 x2", "zero3": "ZeRO-3 x2"}[recipe]

    back = begun_by(tmp_path / "new", tmp_path / "back")
    train(dit_config(back, *limited), DitTask)
    assert_same(back, single)

    begun = DitTask(dit_config(tmp_path / "begun", "model={}", f"init={tmp_path / 'new'}"), torch.device("cpu"))
    product = load_file(tmp_path / "new" / WEIGHTS)
    assert all(torch.equal(product[name], value) for name, value in begun.model.named_parameters())

    export_run(tmp_path / "new", tmp_path / "raw", STAGES, step=3, raw=True)
    ours = load_file(tmp_path / "raw/transformer/diffusion_pytorch_model.safetensors")
    theirs = load_file(single / "checkpoints/step-00000003/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=0)
