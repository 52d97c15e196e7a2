"""Adapters on a model of ours in real launches: every strategy as one process, and runs that are killed."""

import random
import time
from pathlib import Path

import pytest
from comparing import apart, losses
from launching import ROOT, family, finish, kill, launch, start, wait_for
from safetensors.torch import load_file

from latentvid.config.parsing import save_config
from latentvid.training.checkpoint.checkpoint import CheckpointStore

TRAIN = ROOT / "train/train_dit.py"
FILE = "lora/pytorch_lora_weights.safetensors"
KINDS = ("lora", "dora", "loha", "lokr")


@pytest.fixture
def written(dit_config, tiny_pipeline, tmp_path):
    """`written(run, kind, "section.key=value", ...)`: the file of a configuration that trains an adapter on it."""

    def write(run: Path, kind: str, *overrides: str) -> Path:
        path = tmp_path / f"{run.name}.yaml"
        keys = (
            f"init={tiny_pipeline}",
            f"model.mlp_ratio={8 / 3}",
            f"adapter.kind={kind}",
            "adapter.rank=4",
            "adapter.alpha=6",
            "optim.schedule=constant",
        )
        save_config(dit_config(run, *keys, "optim.lr=1e-3", *overrides), path)
        return path

    return write


@pytest.mark.parametrize("recipe", ["ddp", "fsdp2", "zero3"])
def test_strategies_train_one_adapter(recipe, written, gathering, tmp_path):
    """Each kind under two processes and by one: the same losses, and the same file; recomputed blocks too."""
    options = ("--deepspeed_config_file", str(gathering)) if recipe == "zero3" else ()
    of = {kind: (kind,) for kind in KINDS}
    of |= {f"{kind}-recomputed": (kind, "train.gradient_checkpointing=true") for kind in KINDS}
    two = {name: written(tmp_path / f"{name}-two", *of[name], "train.steps=4") for name in of}
    one = {name: written(tmp_path / f"{name}-one", *of[name], "train.steps=4") for name in of}
    launch(recipe, 2, *([TRAIN, config] for config in two.values()), options=options, timeout=1800)
    launch("single", 1, *([TRAIN, config] for config in one.values()), timeout=1800)
    for name in of:
        first, second = tmp_path / f"{name}-two", tmp_path / f"{name}-one"
        assert losses(first) == pytest.approx(losses(second), rel=1e-5), name
        assert apart(first / FILE, second / FILE) < 1e-5, name


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_an_adapter_killed_three_times_is_one_never_killed(kind, written, tmp_path):
    whole, run, chance = tmp_path / "whole", tmp_path / "run", random.Random(0)
    options = ("adapter.dropout=0.1", "train.steps=60", "checkpoint.every=60")
    launch("single", 1, [TRAIN, written(whole, kind, *options)], timeout=900)
    config = written(run, kind, *options)

    def lines() -> int:
        path = run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    for number in range(3):
        before = lines()
        process = start("single", 1, [TRAIN, config, f"--checkpoint.every={1 + number % 2}"], log=tmp_path / "log")
        wait_for(lambda p=process, n=before: lines() > n or p.poll() is not None, 300, "a step")
        time.sleep(chance.uniform(0.0, 0.5))
        kill(family(process.pid))
        finish(process, 30)
        assert losses(run) == losses(whole)[: lines()]
    made = CheckpointStore(run / "checkpoints").steps()
    assert made and made[-1] < 60, f"checkpoints {made}: the kills came too late or too early to prove anything"
    launch("single", 1, [TRAIN, config], timeout=900)
    a, b = load_file(run / FILE), load_file(whole / FILE)
    assert losses(run) == losses(whole) and a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
