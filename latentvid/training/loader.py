"""Feeds each process its packs of each step, in the plan's order, from loader processes if asked."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.plan import Draw, Plan, Step
from ..errors import UserError
from .signals import SIGNALS

MakePack = Callable[[Sequence[Draw]], Any]


class _Packs(Dataset):
    def __init__(self, make_pack: MakePack) -> None:
        self.make_pack = make_pack

    def __getitem__(self, draws: Sequence[Draw]) -> tuple[Sequence[Draw], Any]:
        return draws, self.make_pack(draws)


class _Draws(Sampler):
    """The draws of this rank's packs, one after another, read ahead of training from a copy of the plan."""

    def __init__(self, plan: Plan, reader: int, readers: int) -> None:
        self.plan, self.reader, self.readers = plan, reader, readers

    def __iter__(self) -> Iterator[Sequence[Draw]]:
        while True:
            yield from self.plan.next().packs[self.reader :: self.readers]


def iterate_steps(
    plan: Plan, make_pack: MakePack, *, rank: int, world: int, workers: int, pin_memory: bool, sequence: int = 1
) -> Iterator[tuple[Step, list[tuple[Sequence[Draw], Any]]]]:
    """Endless (step, this rank's packs with the draws of each). `plan` advances as steps are yielded, not as they are
    read ahead, so its state after a step is what a checkpoint of that step must hold.

    sequence: consecutive ranks that work on the same packs; each gets all their draws, of which `make_pack` makes its
    own part. It divides `world`.
    """
    readers = world // sequence
    if plan.packs % readers:
        who = f"{world} processes" if sequence == 1 else f"{readers} groups of {sequence} processes"
        raise UserError(
            f"data.packs_per_step is {plan.packs}, which {who} cannot share equally: make it a multiple of {readers}"
        )
    loader = DataLoader(
        _Packs(make_pack),
        batch_size=None,
        sampler=_Draws(copy.deepcopy(plan), rank // sequence, readers),
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=_leave_the_group if workers else None,
    )
    packs = _start(loader)
    while True:
        step = plan.next()
        yield step, [next(packs) for _ in range(plan.packs // readers)]


def _start(loader: DataLoader) -> Iterator[Any]:
    """Starts the loader's processes out of reach of what asks the run to stop: a launcher sends it to the trainer's
    whole process group, and the step that is being made still needs them."""
    if not loader.num_workers:
        return iter(loader)
    resource_tracker.ensure_running()  # its start unblocks SIGTERM, so it comes first
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited by the fork server, without which they end
    try:
        forkserver.ensure_running()
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _leave_the_group(worker: int) -> None:
    """In a loader process: a session of its own, in which it ends when told to or when the trainer is gone."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_the_trainer, daemon=True).start()


def _end_with_the_trainer() -> None:
    """torch watches the parent, which is the fork server, not the trainer: that one's end is seen nowhere else."""
    multiprocessing.parent_process().join()
    os._exit(1)
