"""Temporal blocks in real launches: every strategy as one process, alone and with all the rest."""

from pathlib import Path

import pytest
from comparing import apart, losses
from launching import train_alike

from latentvid.config.parsing import save_config

WEIGHTS = "diffusion_pytorch_model.safetensors"
KINDS = {  # of each its options, and the file that is left
    "alone": (("trainable=[^temporal]",), f"motion/{WEIGHTS}"),
    "recomputed": (("trainable=[^temporal]", "train.gradient_checkpointing=true"), f"motion/{WEIGHTS}"),
    "all": ((), f"pipeline/transformer/{WEIGHTS}"),
}


@pytest.fixture
def written(dit_config, tiny_pipeline, tmp_path):
    """`written(run, "section.key=value", ...)`: the file of a configuration that inflates the tiny image model; among
    its clips are pictures."""

    def write(run: Path, *overrides: str) -> Path:
        path = tmp_path / f"{run.name}.yaml"
        keys = (
            f"init={tiny_pipeline}",
            f"model.mlp_ratio={8 / 3}",
            "model.attention=inflated",
            "optim.schedule=constant",
            "optim.lr=1e-3",
            "train.steps=4",
        )
        save_config(dit_config(run, *keys, *overrides), path)
        return path

    return write


@pytest.mark.parametrize("recipe", ["ddp", "fsdp2", "zero3"])
def test_strategies_train_the_same(recipe, written, gathering, tmp_path):
    """Under two processes and by one: the same losses, and the same files."""
    options = ("--deepspeed_config_file", str(gathering)) if recipe == "zero3" else ()
    cases = {
        name: lambda which, name=name, more=more: written(tmp_path / f"{name}-{which}", *more)
        for name, (more, _) in KINDS.items()
    }
    train_alike(recipe, cases, options)
    for name, (_, file) in KINDS.items():
        first, second = tmp_path / f"{name}-two", tmp_path / f"{name}-one"
        assert losses(first) == pytest.approx(losses(second), rel=1e-5), name
        assert apart(first / file, second / file) < 1e-5, name
