"""Feeds each process its packs of each step, in the plan's order, from loader processes if asked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.plan import Draw, Plan, Step
from ..errors import UserError

MakePack = Callable[[Sequence[Draw]], Any]


class _Packs(Dataset):
    def __init__(self, make_pack: MakePack) -> None:
        self.make_pack = make_pack

    def __getitem__(self, draws: Sequence[Draw]) -> Any:
        return self.make_pack(draws)


class _Draws(Sampler):
    """The draws of this rank's packs, one after another, read ahead of training from a copy of the plan."""

    def __init__(self, plan: Plan, rank: int, world: int) -> None:
        self.plan, self.rank, self.world = plan, rank, world

    def __iter__(self) -> Iterator[Sequence[Draw]]:
        while True:
            yield from self.plan.next().packs[self.rank :: self.world]


def iterate_steps(
    plan: Plan, make_pack: MakePack, *, rank: int, world: int, workers: int, pin_memory: bool
) -> Iterator[tuple[Step, list[Any]]]:
    """Endless (step, this rank's packs). `plan` advances as steps are yielded, not as they are read ahead, so its
    state after a step is what a checkpoint of that step must hold."""
    if plan.packs % world:
        raise UserError(
            f"data.packs_per_step is {plan.packs}, which {world} processes cannot share equally: "
            f"make it a multiple of {world}"
        )
    loader = DataLoader(
        _Packs(make_pack),
        batch_size=None,
        sampler=_Draws(copy.deepcopy(plan), rank, world),
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context="forkserver" if workers else None,
    )
    packs = iter(loader)
    while True:
        step = plan.next()
        yield step, [next(packs) for _ in range(plan.packs // world)]
