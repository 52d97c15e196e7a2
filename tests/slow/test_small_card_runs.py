"""Moments of 8 bits and bases of codes in real launches: two processes as one, and what cannot be sharded is said."""

import pytest
from comparing import apart, losses
from launching import ROOT, launch

from latentvid.config.parsing import save_config

TRAIN = ROOT / "train/train_dit.py"
LORA = ("adapter.kind=lora", "adapter.rank=4", f"model.mlp_ratio={8 / 3}")
WAYS = {
    "int8": (*LORA, "adapter.base=int8"),
    "nf4": (*LORA, "adapter.base=nf4"),
    "adamw8bit": ("optim.name=adamw8bit",),
}


@pytest.fixture
def written(dit_config, tiny_pipeline, tmp_path):
    """`written(name, way, "section.key=value", ...)`: a configuration's file."""
    pytest.importorskip("bitsandbytes")

    def write(name: str, way: str, *overrides: str):
        path, keys = tmp_path / f"{name}.yaml", ("train.steps=3", "optim.schedule=constant", "optim.lr=1e-3")
        begun = (f"init={tiny_pipeline}",) if way != "adamw8bit" else ("model={depth: 1, width: 96, heads: 2}",)
        save_config(dit_config(tmp_path / name, *keys, *begun, *WAYS[way], *overrides), path)
        return path

    return write


def test_two_processes_train_as_one(written, tmp_path):
    launch("ddp", 2, *([TRAIN, written(f"{way}-two", way)] for way in WAYS), timeout=1800)
    launch("single", 1, *([TRAIN, written(f"{way}-one", way)] for way in WAYS), timeout=1800)
    for way in WAYS:
        two, one = tmp_path / f"{way}-two", tmp_path / f"{way}-one"
        # a gradient that is another by its rounding may be another code
        assert losses(two) == pytest.approx(losses(one), rel=1e-3 if way == "adamw8bit" else 1e-5), way
        if way != "adamw8bit":
            file = "lora/pytorch_lora_weights.safetensors"
            assert apart(two / file, one / file) < 1e-5, way


@pytest.mark.parametrize("recipe", ["fsdp2", "zero2"])
@pytest.mark.parametrize("way", ["int8", "adamw8bit"])
def test_strategies_that_would_cut_it_say_so(recipe, way, written):
    said = {"int8": "cannot shard quantised weights: launch DDP", "adamw8bit": "has one scale for 256 elements"}
    done = launch(recipe, 2, [TRAIN, written(f"{recipe}-{way}", way)], timeout=900, check=False)
    assert done.returncode and said[way] in done.stderr
