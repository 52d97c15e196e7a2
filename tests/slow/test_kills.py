"""kill -9 at random moments, start-up and checkpoint writing included: the run that ends is the run never stopped."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from comparing import assert_each_once, assert_identical, losses
from launching import ROOT, family, finish, kill, launch, start, wait_for

from latentvid.training.checkpoint.checkpoint import CheckpointStore, find_damage

TRAIN = ROOT / "train/train_dit.py"
PACKS = (
    120  # of about 27 samples; a pack for each process makes a short step, so much of the time goes into checkpoints
)
SAMPLES = 300


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def writing(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*.partial"))


def stop_somewhere(run: Path, process, chance: random.Random, moment: str) -> None:
    """Waits for a moment of this kind, and kills the launch and all under it."""
    before = (run / "metrics.jsonl").stat().st_mtime_ns if lines(run) else 0

    def stepping() -> bool:
        return process.poll() is not None or (lines(run) > 0 and (run / "metrics.jsonl").stat().st_mtime_ns > before)

    if moment == "starting":
        time.sleep(chance.uniform(0.0, 5.0))
    else:
        wait_for(stepping, 200, "a step")
        if moment == "writing":
            wait_for(lambda: writing(run) or process.poll() is not None, 60, "a checkpoint being written", every=0.002)
            time.sleep(chance.uniform(0.0, 0.3))
        else:  # with a whole checkpoint to go on from, however slow the machine is
            whole = CheckpointStore(run / "checkpoints")
            wait_for(lambda: whole.steps() or process.poll() is not None, 60, "a whole checkpoint")
            time.sleep(chance.uniform(0.0, 1.5))
    kill(family(process.pid))
    finish(process, 30)


def check_what_is_left(run: Path, whole: Path) -> None:
    """The newest checkpoint is whole, and every loss written so far is that of the run never stopped."""
    store = CheckpointStore(run / "checkpoints")
    for step in store.steps():
        assert find_damage(store.path(step)) is None
    made = losses(run)
    assert made == losses(whole)[: len(made)]


@pytest.mark.parametrize(("recipe", "processes", "kills"), [("single", 1, 20), ("fsdp2", 2, 4)])
def test_any_number_of_kills_changes_no_bit(recipe, processes, kills, demo: Callable, tmp_path: Path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    steps = PACKS // processes
    short = (f"data.packs_per_step={processes}", f"train.steps={steps}", "checkpoint.every=40")
    launch(recipe, processes, [TRAIN, demo(whole, *short)], timeout=900)
    config = demo(run, *short)
    chance = random.Random(0)
    during_writing = 0
    for i in range(kills):
        options = (f"--checkpoint.every={1 + i % 2}", f"--checkpoint.background={str(i % 4 >= 2).lower()}")
        process = start(recipe, processes, [TRAIN, config, *options], log=tmp_path / "log")
        stop_somewhere(run, process, chance, ("writing", "anywhere", "writing", "anywhere", "starting")[i % 5])
        during_writing += writing(run)
        check_what_is_left(run, whole)
    made = CheckpointStore(run / "checkpoints").steps()
    assert made and made[-1] < steps, f"checkpoints {made}: the kills came too late or too early to prove anything"
    assert during_writing >= kills // 5, f"{during_writing} of {kills} kills left a checkpoint half written"
    launch(recipe, processes, [TRAIN, config], timeout=900)
    assert_identical(run, whole)
    assert_each_once(run, SAMPLES)
    print(f"{recipe} x{processes}: {kills} kills, {during_writing} of them during checkpoint writing, no bit changed")
