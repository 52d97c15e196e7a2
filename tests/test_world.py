"""Processes that wait for each other without a collective, whose time limit would end the run."""

import threading
from contextlib import nullcontext
from itertools import count

import pytest
import torch

from latentvid import world
from latentvid.errors import UserError


@pytest.fixture
def group(monkeypatch):
    """`group(n, program)` runs `program(rank)` in n threads as the processes of a launch; what each gave or raised."""
    mine = threading.local()

    class Meetings:
        def __next__(self):
            return next(mine.numbers)

    monkeypatch.setattr(world, "_meetings", Meetings())
    monkeypatch.setattr(world, "_alone", lambda: False)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: mine.rank)

    def run(size, program):
        store = torch.distributed.HashStore()  # a launch has one of its own: another's words would be read for its own
        monkeypatch.setattr(world, "_store", lambda: store)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: size)
        found = [None] * size

        def one(rank):
            mine.rank, mine.numbers = rank, count()
            try:
                found[rank] = program(rank)
            except UserError as error:
                found[rank] = f"error: {error}"

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return found

    return run


def test_all_wait_for_the_last(group):
    arrived = []
    late = threading.Event()

    def program(rank):
        if rank == 2:
            assert late.wait(10)
        arrived.append(rank)
        if len(arrived) == 2:
            late.set()
        world.meet()
        return len(arrived)

    assert group(3, program) == [3, 3, 3]


def test_the_main_ones_choice_and_its_errors_are_everyones(group):
    def refuse():
        raise UserError("the folder is in use")

    def program(rank):
        first = world.from_main(lambda: {"name": f"of {rank}"})
        world.meet()
        return first["name"], world.from_main(refuse) if rank < 9 else None

    assert group(2, lambda rank: world.from_main(lambda: [rank])) == [[0], [0]]
    assert group(3, program) == ["error: the folder is in use"] * 3


def test_alone_there_is_nobody_to_wait_for():
    world.meet()
    assert world.from_main(lambda: 7) == 7


@pytest.mark.parametrize(
    ("sizes", "world_size", "fsdp", "message"),
    [
        ({"DP_REPLICATE": 2, "DP_SHARD": 2}, 4, True, None),
        ({"DP_SHARD": 8}, 8, True, None),
        (
            {"DP_REPLICATE": 2, "DP_SHARD": 8},
            4,
            True,
            "2 copies of 8 shards are 16 processes, and the launcher started 4",
        ),
        ({"DP_REPLICATE": 4}, 4, True, "dp_shard_size=1: copies of shards want FSDP2 and 2 shards or more"),
        ({"DP_SHARD": 4}, 4, False, "copies of shards want FSDP2"),
        ({"DP_SHARD": 2, "TP": 2}, 4, True, "parallelism_config_tp_size=2 is not supported"),
        ({"DP_SHARD": 2, "CP": 2}, 4, True, "parallelism_config_cp_size=2 is not supported.*train.sequence_parallel"),
    ],
)
def test_copies_of_shards_are_as_many_as_processes(sizes, world_size, fsdp, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(fsdp).lower())
    for name in ("DP_REPLICATE", "DP_SHARD", "TP", "CP", "SP"):
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", str(sizes.get(name, 1)))
    with nullcontext() if message is None else pytest.raises(UserError, match=message):
        world.check_shards()
