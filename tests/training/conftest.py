"""A finished run, for the tests of what a run's folder holds."""

import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train


@pytest.fixture(scope="session")
def finished(tmp_path_factory, dit_config) -> Path:
    """A run of two steps with a checkpoint of each."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("finished") / "run"
    train(dit_config(run, "train.steps=2", "checkpoint.every=1", "optim.schedule=constant"), DitTask)
    return run


@pytest.fixture
def begun(finished, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")
