"""Published models over two processes, launched for real: packs of their own, and one pack shared by Ulysses."""

from pathlib import Path

import pytest
from launching import launch
from open_models import INSTANCES

PROGRAM = Path(__file__).parents[2] / "open_launched.py"


@pytest.mark.distributed
def test_sharded_weights_and_shared_packs_equal_one_process():
    """A family with cross-attention and one with joint blocks, whose text lives where its sample begins."""
    done = launch("fsdp2", 2, [PROGRAM, "wan", "cogvideox"])
    assert "FSDP2, a pack shared" in done.stdout


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("recipe", ["ddp", "fsdp2", "zero2", "zero3"])
def test_every_family_under_every_strategy(recipe):
    done = launch(recipe, 2, [PROGRAM, *INSTANCES], timeout=900)
    for name in INSTANCES:
        assert done.stdout.count(f"{name}: ") == 2 * 2  # processes, packs of their own and shared
