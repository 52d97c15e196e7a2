"""Packs for a GPU lie in pinned memory, from where they are copied beside what the GPU computes."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from small_tasks import draws_of

from latentvid.data.plan.plan import Plan
from latentvid.training.feed import loader
from latentvid.training.stages.dit.task import DitTask


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All that are anywhere inside."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def test_every_tensor_of_a_pack_is_pinned(dit_config, tmp_path, monkeypatch):
    task = DitTask(dit_config(tmp_path), torch.device("cpu"))
    pack, pinned = task.make_pack(draws_of(task, 2)), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *device: pinned.append(self) or self)
    pack.pin_memory()
    assert len(pinned) > 4 and {id(t) for t in tensors(pack)} == {id(t) for t in pinned}


@pytest.mark.parametrize("pin", [False, True])
def test_loaders_pin_where_that_is_asked(pin, monkeypatch):
    asked = []

    class Loader(loader.DataLoader):
        def __init__(self, *args: Any, pin_memory: bool, **kwargs: Any) -> None:
            asked.append(pin_memory)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(loader, "DataLoader", Loader)
    steps = loader.iterate_steps(
        Plan([10] * 4, budget=10, packs=1, seed=0), len, rank=0, world=1, workers=0, pin_memory=pin
    )
    next(steps)
    assert asked == [pin]
