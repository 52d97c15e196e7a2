"""What a run refuses, or settles, before its first step."""

import pytest

from latentvid.errors import UserError
from latentvid.training import setup
from latentvid.training.dit_task import DitTask
from latentvid.training.trainer import train


@pytest.mark.parametrize("dry", ["false", "true"])
def test_a_tracker_that_is_not_installed_is_an_error_before_the_work(dry, dit_config, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "is_wandb_available", lambda: False)
    config = dit_config(tmp_path / "run", "log.trackers=[tensorboard,wandb]", f"run.dry_run={dry}")
    with pytest.raises(UserError, match=r"log\.trackers names wandb.*pip install wandb, or set .*=\[tensorboard\]"):
        train(config, DitTask)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_start_is_one_message(dit_config, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(setup.Accelerator, "init_trackers", refuse)
    with pytest.raises(UserError, match=r"cannot start \(no API key configured\).*wandb login"):
        train(dit_config(tmp_path / "run", "log.trackers=[tensorboard]"), DitTask)
