"""Checkpoints are whole or not there, also when the process is killed at any moment."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentvid.training.checkpoint.checkpoint import CheckpointStore, find_damage


def save(store: CheckpointStore, step: int, text: str = "weights") -> Path:
    folder = store.begin(step)
    (folder / "model").mkdir()
    (folder / "model" / "a.bin").write_text(f"{text} {step}")
    (folder / "state.json").write_text(str(step))
    return store.commit(step)


def test_commit_puts_a_whole_checkpoint_in_place(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.newest() is None and store.steps() == []
    folder = save(store, 100)
    assert folder.name == "step-00000100" and store.newest() == folder
    assert (folder / "model" / "a.bin").read_text() == "weights 100"
    assert [p.name for p in store.root.iterdir()] == ["step-00000100"]


def test_an_unfinished_checkpoint_is_not_seen_and_is_cleared(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    (store.begin(2) / "half.bin").write_text("x")
    assert store.newest() == store.path(1) and store.steps() == [1]
    assert list(store.begin(3).iterdir()) == [] and not store.partial(2).exists()


def test_keep_last_and_keep_every(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 11):
        save(store, step)
    assert store.steps() == [4, 8, 9, 10]
    with pytest.raises(ValueError, match="keep_last=0"):
        CheckpointStore(tmp_path, keep_last=0)


def test_the_checkpoint_just_written_is_never_pruned(tmp_path):
    for step in (8, 9):
        save(CheckpointStore(tmp_path), step)
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 5)
    assert store.steps() == [5, 8, 9]


def test_replacing_a_step(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1, "old")
    save(store, 1, "new")
    assert (store.newest() / "model" / "a.bin").read_text() == "new 1" and store.steps() == [1]


def test_killed_between_the_renames_of_a_replacement(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1).rename(tmp_path / ".step-00000001.old")
    assert store.newest() == tmp_path / ".step-00000001.old"
    store.begin(2)
    assert store.newest() == store.path(1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model" / "a.bin").unlink(), "a.bin is missing"),
        (lambda d: (d / "model" / "a.bin").write_text("w"), "a.bin has 1 bytes instead of 9"),
        (lambda d: (d / "model" / "a.bin").write_text("weightz 2"), "a.bin does not match its sha256"),
        (lambda d: (d / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda d: (d / "manifest.json").write_text('{"files": {"a'), "manifest.json is damaged"),
        (lambda d: (d / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_by_name(tmp_path, caplog, damage, message):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    damage(save(store, 2))
    assert store.newest() == store.path(1)
    assert "step-00000002" in caplog.text and message in caplog.text


@pytest.mark.parametrize("where", ["rmtree", "rename"])
def test_an_old_checkpoint_that_cannot_be_removed_stops_no_run(tmp_path, monkeypatch, caplog, where):
    """As on NFS, where a file that another holds open keeps its folder busy: said once, and tried again."""
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 1)

    def busy(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patched:
        if where == "rmtree":
            patched.setattr(shutil, "rmtree", busy)
        else:
            rename = Path.rename
            patched.setattr(Path, "rename", lambda a, b: busy() if "trash" in str(b) else rename(a, b))
        for step in (2, 3):
            assert save(store, step) == store.newest()
    assert caplog.text.count("busy") == 1
    save(store, 4)
    assert store.steps() == [4] and [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


def test_commit_of_nothing_is_refused(tmp_path):
    store = CheckpointStore(tmp_path)
    store.begin(1)
    with pytest.raises(RuntimeError, match="holds no files"):
        store.commit(1)


SAVER = """
import sys
from pathlib import Path
from latentvid.training.checkpoint.checkpoint import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), keep_last=1)
print("ready", flush=True)
step = 0
while True:
    step = step % 3 + 1  # steps come again, so replacing is killed too
    folder = store.begin(step)
    for name in "abc":
        (folder / name).write_bytes(bytes([step]) * 20000)
    store.commit(step)
    for later in [s for s in store.steps() if s > step]:
        store.path(later).rename(store.root / f".step-{later:08d}.trash")
    print(step, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_loadable_newest(tmp_path):
    rng = random.Random(0)
    store = CheckpointStore(tmp_path)
    save(store, 1)
    script = tmp_path / "saver.py"
    script.write_text(SAVER)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for _ in range(15):
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, env=env)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        newest = store.newest()
        assert newest is not None and find_damage(newest) is None
        step = int(newest.name.strip(".").removesuffix(".old").removeprefix("step-"))
        contents = {(newest / name).read_bytes() for name in "abc" if (newest / name).exists()}
        assert contents in ({bytes([step]) * 20000}, set())
