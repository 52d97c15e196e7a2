"""Claims: one process has each, and one that is gone loses it."""

import json
import os
import subprocess
import sys
import threading

from latentvid.claims import DEAD_S, claim, claimed_by, holder


def test_a_claim_has_one_holder_until_it_is_released(tmp_path):
    first = claim(tmp_path / "a[1]")
    assert first is not None and claim(tmp_path / "a[1]") is None and claim(tmp_path / "a") is not None
    assert holder(tmp_path / "a[1]").startswith(f"process {os.getpid()} on ")
    first.release()
    assert holder(tmp_path / "a[1]") is None
    with claim(tmp_path / "a[1]"):
        assert claim(tmp_path / "a[1]") is None
    assert not list(tmp_path.glob("a[[]*"))


def test_of_many_that_ask_at_once_one_gets_it(tmp_path):
    found, start = [], threading.Barrier(16)

    def ask() -> None:
        start.wait()
        found.append(claim(tmp_path / "a"))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sum(each is not None for each in found) == 1


def test_the_claim_of_a_process_that_was_killed_is_taken_over(tmp_path):
    code = "import os, pathlib, sys, latentvid.claims as c; c.claim(pathlib.Path(sys.argv[1])); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert (tmp_path / "a.0").exists() and holder(tmp_path / "a") is None
    mine = claimed_by(tmp_path / "a")
    assert (tmp_path / "a.1").exists() and claim(tmp_path / "a") is None
    mine.release()
    assert not list(tmp_path.iterdir())


def test_a_claim_of_another_machine_lives_by_its_beat(tmp_path):
    file = tmp_path / "a.0"
    file.write_text(json.dumps({"host": "far", "pid": 1, "space": "another boot", "started": "1"}))
    assert holder(tmp_path / "a") == "process 1 on far" and claim(tmp_path / "a") is None
    past = os.stat(file).st_mtime - 2 * DEAD_S
    os.utime(file, (past, past))
    assert holder(tmp_path / "a") is None and claim(tmp_path / "a") is not None
