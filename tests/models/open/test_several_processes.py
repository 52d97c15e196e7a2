"""Published models over two processes, launched for real: packs of their own, and one pack shared by Ulysses."""

from pathlib import Path

import pytest
from launching import launch

PROGRAM = Path(__file__).parents[2] / "open_launched.py"


@pytest.mark.distributed
def test_sharded_weights_and_shared_packs_equal_one_process():
    """A family with cross-attention and one with joint blocks, whose text lives where its sample begins."""
    done = launch("fsdp2", 2, [PROGRAM, "wan", "cogvideox"])
    assert "FSDP2, a pack shared" in done.stdout
