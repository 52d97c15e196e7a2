"""What failed is known to every process of a run, and nothing waits for ever."""

import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time

import pytest

from latentvid.data.quarantine import Hangs, Quarantine, Watched
from latentvid.errors import ClipError


def fault(name: str, reason: str = "missing") -> ClipError:
    return ClipError(name, reason, "is no good")


def test_processes_and_resumes_share_one_file(tmp_path):
    file = tmp_path / "run" / "quarantine.jsonl"
    first, second = Quarantine(file), Quarantine(file)
    assert first.add(fault("a.mp4")) and not first.add(fault("a.mp4", "hangs"))
    assert not second.add(fault("a.mp4"))  # seen in the file
    assert second.add(fault("b\udcff.mp4", "truncated"))
    first.check("b\udcff.mp4")  # may be one window's fault: not forbidden as a whole
    for other in (first, second, Quarantine(file), pickle.loads(pickle.dumps(first))):
        with pytest.raises(ClipError, match="a.mp4") as error:
            other.check("a.mp4")
        assert error.value.reason == "missing"
        assert other.reasons == {"a.mp4": "missing", "b\udcff.mp4": "truncated"}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["path"], line["reason"]) for line in lines] == [("a.mp4", "missing"), ("b\udcff.mp4", "truncated")]
    assert "is no good" in lines[0]["message"]


def test_a_line_that_a_kill_cut_is_skipped(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    file.write_text('{"path": "a.mp4", "rea\n{"path": "b.mp4", "reason": "hangs", "message": ""}\n{"path": "c.mp4", ')
    quarantine = Quarantine(file)
    with pytest.raises(ClipError):
        quarantine.check("b.mp4")
    assert quarantine.reasons == {"b.mp4": "hangs"}


def test_without_a_file_it_is_remembered():
    quarantine = Quarantine()
    quarantine.add(fault("a.mp4"))
    with pytest.raises(ClipError):
        quarantine.check("a.mp4")


def test_a_call_that_hangs_is_given_up_and_the_next_is_answered():
    watched, release = Watched(0.2), threading.Event()
    with pytest.raises(ZeroDivisionError):
        watched(divmod, 1, 0)
    with pytest.raises(Hangs, match="0.2 s"):
        watched(release.wait)
    assert [watched(divmod, 7, 2), pickle.loads(pickle.dumps(watched))(divmod, 9, 2)] == [(3, 1), (4, 1)]
    release.set()


def exit_with_quotient(watched: Watched) -> None:
    os._exit(watched(divmod, 7, 7)[0])


def test_threads_end_with_their_owner_and_a_fork_has_its_own():
    watched = Watched(5.0)
    watched(divmod, 1, 1)
    process = multiprocessing.get_context("fork").Process(target=exit_with_quotient, args=(watched,))
    process.start()
    process.join(10)
    assert process.exitcode == 1
    before = threading.active_count()
    del watched, process
    gc.collect()
    limit = time.monotonic() + 5
    while threading.active_count() >= before and time.monotonic() < limit:
        time.sleep(0.01)
    assert threading.active_count() < before


def test_a_hanging_read_does_not_keep_the_program(tmp_path):
    os.mkfifo(tmp_path / "x.mp4")  # opening it waits for a writer
    program = "import sys; from latentvid.data.quarantine import Watched; Watched(0.1)(open, sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.mp4")], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1 and "Hangs: no answer within 0.1 s" in run.stderr
