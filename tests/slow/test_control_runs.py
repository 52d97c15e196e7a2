"""A ControlNet in real launches: every strategy as one process."""

from pathlib import Path

import pytest
from comparing import apart, losses
from launching import train_alike

from latentvid.config.parsing import save_config

FILE = "controlnet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def written(dit_config, tiny_pipeline, digits_data, tmp_path):
    """`written(run, "section.key=value", ...)`: the file of a configuration that trains a ControlNet on it."""

    def write(run: Path, *overrides: str) -> Path:
        path = tmp_path / f"{run.name}.yaml"
        keys = (
            f"init={tiny_pipeline}",
            f"model.mlp_ratio={8 / 3}",
            "data.latents=null",
            f"data.manifest={digits_data / 'train.jsonl'}",
            "data.max_frames=5",
            "data.references={edges: {signal: canny, place: control}}",
            "controlnet.every=1",
            "optim.schedule=constant",
            "optim.lr=1e-3",
            "train.steps=4",
        )
        save_config(dit_config(run, *keys, *overrides), path)
        return path

    return write


@pytest.mark.parametrize("recipe", ["ddp", "fsdp2", "zero3"])
def test_strategies_train_one_branch(recipe, written, gathering, tmp_path):
    """Under two processes and by one: the same losses, and the same file; recomputed blocks too."""
    options = ("--deepspeed_config_file", str(gathering)) if recipe == "zero3" else ()
    of = {"plain": (), "recomputed": ("train.gradient_checkpointing=true",)}
    cases = {
        name: lambda which, name=name, more=more: written(tmp_path / f"{name}-{which}", *more)
        for name, more in of.items()
    }
    train_alike(recipe, cases, options)
    for name in of:
        first, second = tmp_path / f"{name}-two", tmp_path / f"{name}-one"
        assert losses(first) == pytest.approx(losses(second), rel=1e-5), name
        assert apart(first / FILE, second / FILE) < 1e-5, name
