"""Published models of every family over two processes under every strategy: packs of their own, and one shared."""

from pathlib import Path

import pytest
from launching import launch
from open_instances import INSTANCES

PROGRAM = Path(__file__).parents[1] / "open_launched.py"


@pytest.mark.distributed
@pytest.mark.parametrize("recipe", ["ddp", "fsdp2", "zero2", "zero3"])
def test_every_family_equals_one_process(recipe):
    done = launch(recipe, 2, [PROGRAM, *INSTANCES], timeout=1800)
    for name in INSTANCES:
        assert done.stdout.count(f"{name}: ") == 2 * 2  # processes; packs of their own, and one shared
