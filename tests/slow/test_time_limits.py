"""How long processes wait for each other in an exchange, in every group that a run has."""

from pathlib import Path

import pytest
from launching import launch

PROGRAM = Path(__file__).parent / "late_rank.py"


@pytest.mark.parametrize(
    ("recipe", "processes", "groups", "more"),
    [
        ("ddp", 2, 1, ()),
        ("fsdp2", 2, 1, ()),
        ("hsdp", 4, 3, ()),
        ("zero2", 2, 1, ()),
        ("ddp", 2, 2, ("train.sequence_parallel=2",)),
    ],
)
def test_an_exchange_waits_as_long_as_the_configuration_says(recipe, processes, groups, more, demo, tmp_path):
    path = demo(tmp_path / "run", "train.collective_timeout_s=3", *more)
    done = launch(recipe, processes, [PROGRAM, 9, path], timeout=1800)
    words = done.stdout.split()
    assert words.count("met") == 0 and words.count("late") >= groups * processes, done.stdout


def test_and_no_shorter(demo, tmp_path):
    done = launch("ddp", 2, [PROGRAM, 9, demo(tmp_path / "run")], timeout=1800)
    assert done.stdout.split().count("met") == 2
