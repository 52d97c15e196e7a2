"""kill -9 at random moments, start-up and checkpoint writing included: the run that ends is the run never stopped."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from comparing import assert_each_once, assert_identical, assert_same_run, draws, losses
from launching import ROOT, family, finish, kill, launch, start, wait_for

from latentvid.config.parsing import save_config
from latentvid.training.checkpoint.checkpoint import CheckpointStore, find_damage
from latentvid.training.monitor.metrics import read_metrics

TRAIN = ROOT / "train/train_dit.py"
PACKS = (
    120  # of about 27 samples; a pack for each process makes a short step, so much of the time goes into checkpoints
)
SAMPLES = 300
STAGE_ENDS = {30, 60, 90}
STAGES = """stages=[
  {name: images, data: {max_frames: 1, max_area: 256}},
  {name: small, data: {max_area: 256}, train: {ema: 0.8}},
  {name: larger, data: {tokens_per_pack: 80, packs_per_step: 3}, optim: {lr: 1.0e-3}, scheduler: {shift: 2.0}}]"""


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def writing(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*.partial"))


def ends_saved(run: Path) -> set[int]:
    """The last steps of stages that have a checkpoint."""
    return STAGE_ENDS.intersection(CheckpointStore(run / "checkpoints").steps())


def stop_somewhere(run: Path, process, chance: random.Random, moment: str) -> None:
    """Waits for a moment of this kind, and kills the launch and all under it."""
    before = (run / "metrics.jsonl").stat().st_mtime_ns if lines(run) else 0

    def stepping() -> bool:
        return process.poll() is not None or (lines(run) > 0 and (run / "metrics.jsonl").stat().st_mtime_ns > before)

    if moment == "starting":
        time.sleep(chance.uniform(0.0, 5.0))
    else:
        wait_for(stepping, 200, "a step")
        if moment == "between":  # the next stage's data are being opened, or its first steps made
            made = len(ends_saved(run))
            wait_for(
                lambda: len(ends_saved(run)) > made or process.poll() is not None, 200, "a stage's last checkpoint"
            )
            time.sleep(chance.uniform(0.0, 1.0))
        elif moment == "writing":
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


def test_kills_inside_and_between_stages_change_no_bit(dit_config: Callable, digits_data: Path, tmp_path: Path):
    """Images, then clips of 17 frames, small and larger: five kills, two of them right after a stage's end."""
    clips = ("data.latents=null", f"data.manifest={digits_data / 'train.jsonl'}", "log.draws=true", "train.steps=30")
    clips += ("data.tokens_per_pack=64", "data.packs_per_step=2")
    held_out = ("validation.every=12", f"validation.manifest={digits_data / 'val.jsonl'}", "validation.samples=2")
    whole, run = tmp_path / "whole", tmp_path / "run"
    for folder in (whole, run):
        save_config(dit_config(folder, *clips, *held_out, STAGES), tmp_path / f"{folder.name}.yaml")
    launch("single", 1, [TRAIN, tmp_path / "whole.yaml"], timeout=900)
    chance = random.Random(1)
    begun = time.monotonic()
    for moment in ("starting", "writing", "between", "anywhere", "between"):
        process = start("single", 1, [TRAIN, tmp_path / "run.yaml", "--checkpoint.every=1"], log=tmp_path / "log")
        stop_somewhere(run, process, chance, moment)
        check_what_is_left(run, whole)
        print(f"{moment}: killed at {lines(run)} of 90 steps")
    made = CheckpointStore(run / "checkpoints").steps()
    assert made and made[-1] < 90, f"checkpoints {made}: the kills came too late to prove anything"
    launch("single", 1, [TRAIN, tmp_path / "run.yaml", "--checkpoint.every=1"], timeout=900)
    assert_same_run(run, whole, 90)
    assert draws(run) == draws(whole)
    timeless = [[{**line, "seconds": 0} for line in read_metrics(r, "validation.jsonl")] for r in (run, whole)]
    assert timeless[0] == timeless[1] and timeless[0]
    assert len({number for step in draws(run) for number, _ in step}) == sum(map(len, draws(run)))
    print(f"five kills of a curriculum, {time.monotonic() - begun:.0f} s: no bit changed")
