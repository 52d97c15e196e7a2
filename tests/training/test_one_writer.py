"""A run's folder has one writer, and nothing in it is destroyed because it cannot be read."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from run_folders import contents, go_on

from latentvid.errors import UserError, message_of
from latentvid.lock import NAME, FolderLock
from latentvid.training.checkpoint.checkpoint import CheckpointStore
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train


def test_where_all_checkpoints_are_damaged_nothing_is_touched(dit_config, begun):
    (begun / "checkpoints/step-00000001/ema.safetensors").unlink()
    with (begun / "checkpoints/step-00000002/model.safetensors").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff")
    before = contents(begun)
    damage = r"step-00000002: model.safetensors does not match its sha256; step-00000001: ema.safetensors is missing"
    with pytest.raises(
        UserError, match=rf"no checkpoint in .* is whole \({damage}\).*remove that folder by hand or give"
    ):
        go_on(dit_config, begun)
    assert contents(begun) == before
    shutil.rmtree(begun / "checkpoints")  # as it says
    go_on(dit_config, begun, steps=1)
    assert [r["step"] for r in read_metrics(begun)] == [1]
    kept = (begun / "metrics.jsonl.1").read_text()
    assert kept.encode() == before["metrics.jsonl"]  # and the curves of the lost run are still there


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_text("no folder")])
def test_what_stands_in_the_place_of_a_checkpoint_is_damage(make, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    make(tmp_path / "checkpoints/step-00000004")
    with pytest.raises(UserError, match="step-00000004: it is no folder"):
        CheckpointStore(tmp_path / "checkpoints").newest()


def test_a_run_that_may_not_export_leaves_what_is_there(dit_config, begun, monkeypatch):
    def fail(self, model, folder):
        folder.mkdir()
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DitTask, "export", fail)
    before = contents(begun / "pipeline")
    with pytest.raises(UserError, match="pipeline could not be written .*No space left.*make room"):
        go_on(dit_config, begun)
    assert contents(begun / "pipeline") == before
    assert sorted(p.name for p in begun.iterdir() if p.name.startswith(".")) == []


def test_a_second_run_is_refused_before_it_does_anything(dit_config, begun):
    before = contents(begun)
    with FolderLock(begun), pytest.raises(UserError, match=rf"in use by process {os.getpid()} on .* another run\.dir"):
        go_on(dit_config, begun)
    assert contents(begun) == before
    go_on(dit_config, begun)
    assert not (begun / NAME).exists() and len(read_metrics(begun)) == 3


def test_a_run_whose_folder_was_taken_writes_no_checkpoint(dit_config, begun):
    class Taken(DitTask):
        def loss(self, model, pack, step):
            text = json.loads((begun / NAME).read_text())
            (begun / NAME).write_text(json.dumps(text | {"token": "another", "host": "node7"}))
            return super().loss(model, pack, step)

    config = dit_config(begun, "checkpoint.every=1", "optim.schedule=constant", "train.steps=3")
    with pytest.raises(UserError, match="taken over by process .* on node7"):
        train(config, Taken)
    assert CheckpointStore(begun / "checkpoints").steps() == [1, 2] and (begun / NAME).exists()


def test_a_folder_that_cannot_be_written_is_found_before_the_work(dit_config, tmp_path):
    (tmp_path / "file").touch()
    for run in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(UserError, match=r"cannot be written \(.*\): give another run.dir"):
            train(dit_config(run), lambda *_: pytest.fail("it began to work"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_message_and_loses_nothing(dit_config, small_disk):
    run = small_disk / "run"
    with pytest.raises(UserError, match=r"could not be written .*No space left.*make room .*goes on from the start"):
        train(dit_config(run, "checkpoint.every=1"), DitTask)
    assert len(read_metrics(run)) == 1 and not list((run / "checkpoints").iterdir())  # and the room is free again
    filler = run.with_name("filler")
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\): give another run.dir"):
        train(dit_config(run), DitTask)


def test_few_open_files_are_enough_or_one_message(dit_config, begun):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, before[1]))
    try:
        go_on(dit_config, begun)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    kept = contents(begun)
    spare = os.open(os.devnull, os.O_RDONLY)
    os.close(spare)  # the next file would have this number
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, before[1]))
    try:
        with pytest.raises((UserError, OSError)) as error:
            go_on(dit_config, begun, steps=4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "open files" in message_of(error.value) and contents(begun) == kept
