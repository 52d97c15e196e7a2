"""Tasks of the transformer's stage for tests: with weights that all do something, and stopped in between."""

import torch
from torch import nn

from latentvid.data.plan.plan import Draw
from latentvid.training.stages.dit.task import DitTask


class Stop(Exception):
    pass


def stopping(after: int) -> type[DitTask]:
    """One that raises `Stop` after so many passes."""

    class Stopping(DitTask):
        left = after

        def loss(self, model, pack, step):
            Stopping.left -= 1
            if Stopping.left < 0:
                raise Stop
            return super().loss(model, pack, step)

    return Stopping


def lively(module: nn.Module) -> None:
    """Moves all its weights, so that what begins at zero does something."""
    rand = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rand))


def draws_of(task: DitTask, count: int) -> list[Draw]:
    return [Draw(number, number % len(task.grids)) for number in range(count)]
