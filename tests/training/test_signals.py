"""A scheduler's signal saves the step that is being made and ends the process with a status to requeue on."""

import os
import signal
import subprocess
import sys
import time

from launching import ROOT

from latentvid.training.checkpoint import CheckpointStore
from latentvid.training.dit_task import DitTask
from latentvid.training.load import save_config
from latentvid.training.metrics import read_metrics
from latentvid.training.signals import PREEMPTED, StopRequest
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
    limit = time.monotonic() + 120
    while len(read_metrics(stopped)) < 3 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == PREEMPTED == 75, said
    done = read_metrics(stopped)[-1]["step"]
    assert CheckpointStore(stopped / "checkpoints").newest().name == f"step-{done:08d}"
    assert f"asked to stop: saved step-{done:08d}" in said
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
