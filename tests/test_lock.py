"""One writer a folder: the living keep it, the dead do not, whichever machine they were on."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from latentvid import lock as module
from latentvid.errors import UserError
from latentvid.lock import NAME, FolderLock, Holder


@pytest.fixture
def fast(monkeypatch):
    """Signs of life every 0.05 s; a second without one is death."""
    for name, seconds in {"BEAT": 0.05, "SILENT": 1.0, "SURE": 0.3}.items():
        monkeypatch.setattr(module, name, seconds)


def leave(folder, **changes) -> Holder:
    """A lock that a holder like this process left."""
    holder = replace(Holder.this(), **changes)
    (folder / NAME).write_text(json.dumps(asdict(holder)))
    return holder


def ended() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_holder_at_a_time_who_is_named(tmp_path):
    with FolderLock(tmp_path / "run"):
        with (
            pytest.raises(
                UserError, match=rf"run is in use by process {os.getpid()} on .*, since 20.*another run\.dir"
            ),
            FolderLock(tmp_path / "run", fix="give another run.dir"),
        ):
            pass
        assert [p.name for p in (tmp_path / "run").iterdir()] == [NAME]
    assert not list((tmp_path / "run").iterdir())
    with FolderLock(tmp_path / "run"):
        pass


def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path):
    for changes in ({"pid": ended()}, {"started": Holder.this().started + 1}):  # the second: its number came again
        leave(tmp_path, **changes)
        start = time.monotonic()
        with FolderLock(tmp_path) as lock:
            assert Holder.read((tmp_path / NAME).read_text()) == lock.me
        assert time.monotonic() - start < module.BEAT


def test_a_zombie_counts_as_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    while module._process(process.pid)[0] != "Z":
        time.sleep(0.01)
    leave(tmp_path, pid=process.pid, started=module._process(process.pid)[1])
    with FolderLock(tmp_path):
        pass
    process.wait()


def test_another_machine_is_waited_for_and_followed_when_it_is_silent(tmp_path, fast, capsys):
    leave(tmp_path, machine="another", host="node7")
    with FolderLock(tmp_path):
        pass
    assert "is held by process" in (said := capsys.readouterr().err) and "on node7" in said


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\0\0", json.dumps({"pid": "x"})])
def test_a_lock_that_cannot_be_read_is_judged_by_its_signs_of_life(content, tmp_path, fast):
    (tmp_path / NAME).write_text(content)
    os.utime(tmp_path / NAME, (1, 1))  # long ago
    with FolderLock(tmp_path):
        pass


def test_a_sign_of_life_from_another_machine_refuses(tmp_path, fast):
    leave(tmp_path, machine="another", host="node7")
    done = threading.Event()

    def beat():
        while not done.wait(0.1):
            os.utime(tmp_path / NAME)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="in use by process .* on node7"), FolderLock(tmp_path):
            pass
    finally:
        done.set()
        thread.join()
    assert Holder.read((tmp_path / NAME).read_text()).host == "node7"


def test_the_holder_gives_signs_of_life_and_notices_when_it_was_followed(tmp_path, fast):
    with FolderLock(tmp_path) as lock:
        os.utime(tmp_path / NAME, (1, 1))
        end = time.monotonic() + 10
        while (tmp_path / NAME).stat().st_mtime == 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / NAME).stat().st_mtime > 1
        lock.check()
        leave(tmp_path, token="heir", host="node7")
        with pytest.raises(UserError, match="taken over by process .* on node7"):
            lock.check()
    assert Holder.read((tmp_path / NAME).read_text()).host == "node7"  # and leaves it its lock


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_follow_a_dead_one_never_two_hold_it(links, tmp_path, monkeypatch):
    if not links:

        def refuse(*_):
            raise PermissionError(1, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    leave(tmp_path, pid=ended())
    inside, most, held, refused = [], [], [], []

    def follow():
        try:
            with FolderLock(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.02)
                inside.pop()
                held.append(1)
        except UserError:
            refused.append(1)

    threads = [threading.Thread(target=follow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and held and len(held) + len(refused) == 8
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/hostname", path)])
def test_what_is_no_file_in_its_place_is_said(make, tmp_path):
    make(tmp_path / NAME)
    with pytest.raises(UserError, match="is no regular file: remove it"), FolderLock(tmp_path):
        pass
