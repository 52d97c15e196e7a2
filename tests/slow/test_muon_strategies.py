"""Muon on matrices that FSDP2 shards: real launches, against one process."""

from pathlib import Path

import pytest
from comparing import difference
from launching import ROOT, launch

PROGRAM = Path(__file__).parent / "train_in_fp32.py"
MUON = ("optim.name=muon", "optim.lr=5e-3", "optim.weight_decay=0.01", "train.steps=8", "checkpoint.every=4")


@pytest.fixture(scope="module")
def one(demo, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    launch("single", 1, [PROGRAM, demo(run, *MUON)], timeout=1800)
    return run


@pytest.mark.parametrize(("recipe", "processes"), [("ddp", 2), ("fsdp2", 2)])
def test_every_strategy_that_keeps_matrices_gives_the_same_run(recipe, processes, demo, one, tmp_path):
    launch(recipe, processes, [PROGRAM, demo(tmp_path / "run", *MUON)], timeout=1800)
    difference(tmp_path / "run", one).check()


def test_a_run_goes_on_between_them(demo, one, tmp_path):
    run = tmp_path / "run"
    for recipe, processes, steps in (("fsdp2", 2, 4), ("single", 1, 6), ("fsdp2", 2, 8)):
        launch(recipe, processes, [PROGRAM, demo(run, *MUON, f"train.steps={steps}")], timeout=1800)
    difference(run, one).check()


def test_zero_refuses_it(demo, tmp_path):
    done = launch("zero2", 2, [ROOT / "train/train_dit.py", demo(tmp_path / "run", *MUON)], timeout=1800, check=False)
    assert done.returncode and "which ZeRO flattens: use adamw, or launch DDP or FSDP2" in done.stderr
