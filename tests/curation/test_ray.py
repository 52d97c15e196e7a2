"""Curations on Ray Data, as programs: any number of processes, killed at any moment, files that end a process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from curated_footage import shot, write

pytest.importorskip("ray", reason="needs Ray: pip install latentvid[curation]")
pytestmark = [pytest.mark.slow, pytest.mark.distributed]

ROOT = Path(__file__).parents[2]
OUTPUTS = ("train.parquet", "validation.parquet", "segments.parquet", "bad.jsonl", "curation.yaml", "summary.json")
CONFIG = """
segments: {min_frames: 5, max_frames: 9}
measures: {area: 5000}
captions: {template: "a clip of {stem}"}
filters: ["motion > 0.1"]
split: {validation: 0.3}
"""
CRASH = """
import os

def crash(pixels):
    if pixels.shape[1] == 80:
        os._exit(3)
    return 1.0
"""


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    for n in range(4):
        write(folder / "in" / f"{n}.mp4", shot(n, 20), shot(n + 20, 20))
    write(folder / "in" / "copy.mp4", shot(0, 20)[:, ::2, ::2], shot(20, 20)[:, ::2, ::2], crf=28)
    (folder / "in" / "broken.mp4").write_bytes(b"no video")
    detector = "" if _has_scenedetect() else "shots: {detector: none}\n"
    (folder / "c.yaml").write_text(detector + CONFIG)
    return folder


def _has_scenedetect() -> bool:
    try:
        import scenedetect  # noqa: F401
    except ImportError:
        return False
    return True


def start(folder: Path, out: str, workers: int, config: str = "c.yaml") -> subprocess.Popen:
    words = ["-m", "latentvid", "curate", "in", out, "--config", config, "--workers", str(workers)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *words], cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)


def finish(run: subprocess.Popen) -> str:
    said, errors = run.communicate(timeout=900)
    assert run.returncode == 0, errors
    return said


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def noted(out: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in out.glob("journals/*.jsonl"))


def test_one_process_two_and_killed_ones_write_the_same_bytes(footage):
    said = finish(start(footage, "one", 1))
    assert "bad 1 (unreadable)" in said and "(duplicate)" in said
    finish(start(footage, "two", 2))
    kills = 0
    while True:
        run, before = start(footage, "killed", 2), noted(footage / "killed")
        while run.poll() is None and noted(footage / "killed") <= before + 1:
            time.sleep(0.02)
        if run.poll() is not None:
            finish(run)
            break
        run.send_signal(signal.SIGKILL)
        run.communicate()
        kills += 1
    assert kills >= 2
    assert outputs(footage / "one") == outputs(footage / "two") == outputs(footage / "killed")


def test_a_file_over_which_processes_die_is_bad_and_the_others_are_curated(footage):
    write(footage / "in" / "deadly.mp4", shot(9, 20, height=80))
    (footage / "deadly.py").write_text(CRASH)
    text = (footage / "c.yaml").read_text().replace("{area: 5000}", "{area: 5000, own: {alive: 'deadly:crash'}}")
    (footage / "d.yaml").write_text(text)
    finish(start(footage, "deadly", 2, "d.yaml"))
    rows = pyarrow.parquet.read_table(footage / "deadly" / "segments.parquet").to_pylist()
    deadly = {row["dropped"] for row in rows if row["source"] == "deadly.mp4"}
    assert deadly == {"crashes-the-reader"}
    assert all(row["alive"] == 1.0 for row in rows if not row["dropped"]) and any(not row["dropped"] for row in rows)
    assert json.loads((footage / "deadly" / "summary.json").read_text())["dropped"]["crashes-the-reader"]
