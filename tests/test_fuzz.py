"""benchmarks/fuzz.py: some of its cases on every run, and that it knows a bad ending from a good one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nKeyError: 1\n'
ERROR = "error: clip.mp4: it is truncated; copy it again\n"


@pytest.fixture
def fuzz_run(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fuzz_run

    return fuzz_run


def exited(status: int) -> int:
    return status << 8


@pytest.mark.parametrize(
    ("kind", "must", "status", "said"),
    [
        ("taken", None, exited(0), ""),
        ("taken", "pass", exited(0), ""),
        ("taken", "say", exited(0), "dropped 1: clip.mp4\n"),
        ("silent", "say", exited(0), "all is well\n"),
        ("silent", "fail", exited(0), "dropped 1: clip.mp4\n"),
        ("refused", None, exited(2), ERROR),
        ("refused", "fail", exited(2), f"sampling: 3 of 4\n{ERROR}"),
        ("refused", None, exited(2), "usage: t2v.py\nt2v.py: error: argument --x: clip.mp4 is none\n"),
        ("wrongly refused", "pass", exited(2), ERROR),
        ("unnamed", None, exited(2), "error: it is truncated\n"),
        ("unnamed", None, exited(2), "clip.mp4 is truncated\n"),
        ("unnamed", None, exited(2), ERROR + ERROR),
        ("traceback", None, exited(1), TRACEBACK),
        ("traceback", None, exited(0), TRACEBACK),  # of a loader process, say
        ("memory", None, exited(1), TRACEBACK.replace("KeyError: 1", "MemoryError")),
        ("crash", None, 11, ""),
        ("lost", None, exited(2), f"made 100%\n{ERROR}"),
    ],
)
def test_endings_are_told_apart(fuzz_run, tmp_path, kind, must, status, said):
    case = {"program": "t2v.py", "arguments": [], "what": "cut", "names": ["clip.mp4"], "must": must, "kept": {}}
    (tmp_path / "case.json").write_text(json.dumps(case | {"work_first": "made 100%"}))
    (tmp_path / "stdout").write_text("")
    (tmp_path / "stderr").write_text(said)
    run = fuzz_run.Running(3, 0, tmp_path, time.monotonic())
    assert fuzz_run.judge(run, "media", status, late=False).kind == kind
    assert fuzz_run.judge(run, "media", status, late=True).kind == "hang"


def test_what_a_refusal_must_leave(fuzz_run, tmp_path):
    """A log may have grown, and must begin as it did."""
    log = tmp_path / "metrics.jsonl"
    case = {"program": "t2v.py", "arguments": [], "what": "", "names": ["clip.mp4"], "must": None, "work_first": None}
    (tmp_path / "case.json").write_text(json.dumps(case | {"kept": {str(log): b"one\n".hex()}}))
    (tmp_path / "stdout").write_text("")
    (tmp_path / "stderr").write_text(ERROR)
    run = fuzz_run.Running(3, 0, tmp_path, time.monotonic())
    kinds = []
    for text in ("one\ntwo\n", "two\n"):
        log.write_text(text)
        kinds.append(fuzz_run.judge(run, "run", exited(2), late=False).kind)
    assert kinds == ["refused", "lost"]


def test_cases_end_well(tmp_path):
    """Some cases, run as anyone runs them."""
    found = tmp_path / "bad.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/fuzz.py"), "--cases", "6", "--seconds", "90", "--json", str(found)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{found.exists() and found.read_text()}"
    assert "| all " in done.stdout and not list(tmp_path.glob("fuzz-*"))
