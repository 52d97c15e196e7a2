"""A finished run, for the tests of what a run's folder holds; what to encode."""

import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import latentvid.training.stages.dit.cache_maker as cache_maker
from latentvid.training.stages.dit.encode import EncodeConfig
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train


@pytest.fixture(scope="session")
def finished(tmp_path_factory, dit_config) -> Path:
    """A run of two steps with a checkpoint of each."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("finished") / "run"
    train(dit_config(run, "train.steps=2", "checkpoint.every=1", "optim.schedule=constant"), DitTask)
    return run


@pytest.fixture(scope="session")
def begun_pipeline(finished) -> Path:
    """The model that it made, to go on from."""
    return finished / "pipeline"


@pytest.fixture
def begun(finished, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def encoding(digits_data, tiny_vae, tiny_t5, tmp_path, monkeypatch) -> EncodeConfig:
    """Of the digits, three shards."""
    monkeypatch.setattr(cache_maker, "SHARD", 8)  # so that 24 windows are three shards
    return EncodeConfig(
        manifest=digits_data / "train.jsonl",
        vae=tiny_vae,
        text_encoder=str(tiny_t5),
        out=tmp_path / "latents",
        max_frames=17,
        max_area=None,
        patch=2,
        batch=4,
        mixed_precision="no",
    )
