"""Checkpoints from several writers: in place only when every part is, beside training if asked, errors said."""

import threading
import time
from functools import partial

import pytest
import torch

from latentvid.errors import UserError
from latentvid.training.checkpoint import saver as module
from latentvid.training.checkpoint.checkpoint import CheckpointStore, find_damage
from latentvid.training.checkpoint.saver import Saver, newest_for_all
from latentvid.training.parallel.pieces import PieceReader


def tensors(rank: int) -> dict:
    return {"model": {f"w[{rank * 2}:{rank * 2 + 2}]": torch.full((2,), float(rank))}}


def run(savers: list[Saver], step: int) -> None:
    """All "processes" save, each in a thread of its own."""
    threads = [threading.Thread(target=s.save, args=(step, tensors(i), {"step": step})) for i, s in enumerate(savers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def group(tmp_path, world: int, beside: bool = False) -> list[Saver]:
    barrier = threading.Barrier(world)
    return [Saver(CheckpointStore(tmp_path), rank, world, barrier.wait, beside) for rank in range(world)]


@pytest.mark.parametrize("world", [1, 3])
def test_all_parts_make_one_checkpoint(world, tmp_path):
    run(group(tmp_path, world), 7)
    folder = CheckpointStore(tmp_path).newest()
    names = sorted(p.name for p in folder.iterdir())
    files = ["model.safetensors"] if world == 1 else [f"model-0000{i}-of-00003.safetensors" for i in range(3)]
    assert names == ["manifest.json", *files, "state.json"] and find_damage(folder) is None
    if world == 3:
        assert PieceReader(folder, "model").full("w", (6,)).tolist() == [0, 0, 1, 1, 2, 2]
        (folder / files[2]).write_bytes(b"x")
        assert "model-00002" in find_damage(folder)


def test_a_checkpoint_waits_for_the_slowest_and_is_not_there_without_it(tmp_path):
    main, other = group(tmp_path, 2, beside=True)
    main.part_timeout = 0.2
    store = main.store
    store.begin(3)
    main._write(3, tensors(0), {"step": 3})
    with pytest.raises(UserError, match=r"could not be written .*processes \[1\] have not written.*from the start"):
        main.finish()
    assert store.newest() is None
    main.part_timeout = 20
    store.begin(4)
    thread = threading.Thread(target=partial(main._write, 4, tensors(0), {"step": 4}))
    thread.start()
    time.sleep(0.1)
    assert store.newest() is None
    other._write(4, tensors(1), {})
    thread.join()
    assert store.newest() == store.path(4)


def test_in_the_background_the_next_save_waits_and_a_failure_is_raised_then(tmp_path):
    (saver,) = group(tmp_path, 1, beside=True)
    saver.save(1, tensors(0), {"step": 1})
    saver.save(2, tensors(0), {"step": 2})
    saver.finish()
    assert saver.store.steps() == [1, 2]
    saver.save(3, {"model": {"w": "no tensor"}}, {})
    with pytest.raises(UserError, match=r"goes on from step-00000002"):
        saver.save(4, tensors(0), {})
    saver.finish()  # said once
    assert saver.store.newest() == saver.store.path(2)


def test_all_processes_go_on_from_the_main_ones_choice(tmp_path, monkeypatch):
    (saver,) = group(tmp_path, 1)
    assert newest_for_all(saver.store) is None
    saver.save(5, tensors(0), {})
    assert newest_for_all(saver.store) == saver.store.path(5)
    monkeypatch.setattr(module, "from_main", lambda choose: "step-00000009")
    with pytest.raises(UserError, match="step-00000009.*file system that all nodes share"):
        newest_for_all(saver.store)
