"""A scheduler's signal saves the step that is being made and ends the process with a status to requeue on."""

import os
import signal
import subprocess
import sys
import time

import pytest
from launching import ROOT

from latentvid.config.parsing import save_config
from latentvid.training import trainer
from latentvid.training.checkpoint.checkpoint import CheckpointStore
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.signals import INTERRUPTED, PREEMPTED, TWICE, StopRequest
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train


def test_a_preempted_run_saves_and_goes_on_as_if_nothing_had_been(dit_config, tmp_path):
    options = ("optim.schedule=constant", "checkpoint.every=1000", "checkpoint.background=true")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    save_config(dit_config(stopped, *options, "train.steps=100000"), tmp_path / "config.yaml")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train/train_dit.py"), str(tmp_path / "config.yaml")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 400  # where others use the processors too
    while len(read_metrics(stopped)) < 3 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)  # Ctrl-C; the scheduler's signals go the same way
    said = process.communicate(timeout=400)[1]
    assert process.returncode == PREEMPTED == 75 and "Traceback" not in said, said
    assert "Ctrl-C once more ends at once" in said
    done = read_metrics(stopped)[-1]["step"]
    assert CheckpointStore(stopped / "checkpoints").newest().name == f"step-{done:08d}"
    assert "asked to stop" in said and f"step-{done:08d}" in said  # between steps, or while it waited for data
    for run in (stopped, whole):
        train(dit_config(run, *options, f"train.steps={done + 2}"), DitTask)
    assert [r["loss"] for r in read_metrics(stopped)] == [r["loss"] for r in read_metrics(whole)]


def test_handlers_are_there_only_inside_and_take_every_signal():
    before = signal.getsignal(signal.SIGTERM)
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    try:
        with StopRequest() as stop:
            assert stop.asked is None
            signal.raise_signal(signal.SIGUSR1)
            assert stop.asked == "SIGUSR1"
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)
            assert stop.asked == "SIGTERM" and not ended
        signal.raise_signal(signal.SIGTERM)
        assert ended == [True]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_dry_run_ends_when_it_is_told_to(dit_config, monkeypatch, tmp_path):
    """It has nothing to save."""
    seen, before = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(trainer, "dry_run", lambda *_: seen.append(signal.getsignal(signal.SIGTERM)))
    train(dit_config(tmp_path, "run.dry_run=true"), DitTask)
    assert seen == [before]


def test_ctrl_c_saves_only_where_there_are_steps_to_lose():
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts beside itself ignores it
    with StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.asked is None
        stop.saves = True
        signal.raise_signal(signal.SIGINT)
        assert stop.asked == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, usual)


def test_a_second_ctrl_c_ends_at_once_what_hangs():
    """Not one that a launcher passes on beside the terminal, a moment after the first."""
    program = (
        "import time\n"
        "from latentvid.training.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    stop.saves = True\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(120)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    while "asked to stop" not in process.stderr.readline():  # so its time is noted, however late that was
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    time.sleep(TWICE + 0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=100)
    assert process.returncode == INTERRUPTED == 130
