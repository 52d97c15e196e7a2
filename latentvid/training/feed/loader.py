"""Feeds each process its packs of each step, in the plan's order, from loader processes if asked."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from multiprocessing import forkserver, resource_tracker
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ...data.plan.plan import Draw, Plan, Step
from ...errors import UserError, message_of
from ...words import counted
from ..signals import SIGNALS

MakePack = Callable[[Sequence[Draw]], Any]
SHARED_MEMORY = "/dev/shm"


class _Packs(Dataset):
    """The packs, or the UserError that a pack's making ended in: raised here, torch would wrap it in a traceback."""

    def __init__(self, make_pack: MakePack, shared: bool) -> None:
        self.make_pack, self.shared = make_pack, shared

    def __getitem__(self, draws: Sequence[Draw]) -> tuple[Sequence[Draw], Any] | UserError:
        try:
            pack = self.make_pack(draws)
            if self.shared:
                _share(pack)
        except UserError as error:
            return error
        except OSError as error:
            said = None if error.errno == errno.ENOSPC else message_of(error)  # the main process knows what is full
            if said is None:
                raise
            return UserError(said)
        return draws, pack


class _Draws(Sampler):
    """The draws of this rank's packs, one after another, read ahead of training from a copy of the plan."""

    def __init__(self, plan: Plan, reader: int, readers: int) -> None:
        self.plan, self.reader, self.readers = plan, reader, readers

    def __iter__(self) -> Iterator[Sequence[Draw]]:
        while True:
            yield from self.plan.next().packs[self.reader :: self.readers]


def iterate_steps(
    plan: Plan,
    make_pack: MakePack,
    *,
    rank: int,
    world: int,
    workers: int,
    pin_memory: bool,
    sequence: int = 1,
    waiting: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[tuple[Step, list[tuple[Sequence[Draw], Any]]]]:
    """Endless (step, this rank's packs with the draws of each). `plan` advances as steps are yielded, not as they are
    read ahead, so its state after a step is what a checkpoint of that step must hold.

    sequence: consecutive ranks that work on the same packs; each gets all their draws, of which `make_pack` makes its
    own part. It divides `world`. waiting: what is entered while packs are waited for; what it raises leaves the plan
    where it was. Raises UserError where loader processes die or cannot hand their packs over.
    """
    readers = world // sequence
    if plan.packs % readers:
        who = counted(world, "process") if sequence == 1 else f"{readers} groups of {counted(sequence, 'process')}"
        raise UserError(
            f"data.packs_per_step is {plan.packs}, which {who} cannot share equally: make it a multiple of {readers}"
        )
    loader = DataLoader(
        _Packs(make_pack, shared=workers > 0),
        batch_size=None,
        sampler=_Draws(copy.deepcopy(plan), rank // sequence, readers),
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=_leave_the_group if workers else None,
    )
    packs = _start(loader)
    while True:
        with waiting():
            mine = [_next(packs) for _ in range(plan.packs // readers)]
        yield plan.next(), mine


def _next(packs: Iterator[Any]) -> tuple[Sequence[Draw], Any]:
    try:
        found = next(packs)
    except (RuntimeError, OSError, EOFError) as error:  # also what reading from a dead process raises
        for process in getattr(packs, "_workers", ()):  # torch has no public name for them
            process.join(1)
            if process.exitcode is not None:
                raise UserError(_death(process.exitcode)) from error
        raise _explained(error) from error
    if isinstance(found, UserError):
        raise found
    return found


def start_server(module: str) -> None:
    """Starts the process that loader processes are forked from, once: it imports `module`, which makes the packs, in
    their place and while this process goes on.

    It is out of reach of what asks the run to stop: a launcher sends that to the trainer's whole process group, and the
    step that is being made still needs loaders. Raises UserError where the machine's limits do not allow it.
    """
    resource_tracker.ensure_running()  # its start unblocks SIGTERM, so it comes first
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited by the fork server, without which they end
    try:
        forkserver.set_forkserver_preload([module])
        forkserver.ensure_running()
    except OSError as error:
        raise _explained(error) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _start(loader: DataLoader) -> Iterator[Any]:
    """Starts the loader's processes."""
    if not loader.num_workers:
        return iter(loader)
    start_server(loader.dataset.make_pack.__module__)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return iter(loader)
    except OSError as error:  # its locks lie in shared memory
        raise _explained(error) from error
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


# --- what goes wrong between processes -------------------------------------------------------------------------------


def _share(pack: Any) -> None:
    """Moves a pack's tensors to shared memory. torch would do it later, in a thread whose failure nobody sees: the
    trainer would wait for ever."""
    if isinstance(pack, Tensor):
        try:
            pack.share_memory_()
        except (RuntimeError, OSError) as error:
            raise _explained(error) from error
    elif is_dataclass(pack):
        for field in fields(pack):
            _share(getattr(pack, field.name))
    elif isinstance(pack, dict):
        _share(list(pack.values()))
    elif isinstance(pack, list | tuple):
        for value in pack:
            _share(value)


def _explained(error: Exception) -> Exception:
    """The error with its remedy, where it is one of the machine's limits."""
    number, text = getattr(error, "errno", None), str(error)
    if number == errno.ENOSPC or "shared memory" in text or "No space left" in text:
        space = shutil.disk_usage(SHARED_MEMORY)
        return UserError(
            f"loader processes hand their packs over in {SHARED_MEMORY}, which is too small ({_size(space.total)}, of "
            f"which {_size(space.free)} are free): give the container more (docker run --shm-size=8g; Kubernetes: an "
            "emptyDir of medium Memory mounted there), or set data.workers=0"
        )
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text or "ancdata" in text:
        return UserError(
            "loader processes and the trainer have too many open files: raise `ulimit -n`, or set data.workers=0"
        )
    return error


def _death(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        how = f"was killed by {name}"
        likely = {
            "SIGKILL": "most likely the machine's memory ran out: lower data.workers or data.tokens_per_pack",
            "SIGBUS": f"most likely {SHARED_MEMORY} is full: make it larger, or set data.workers=0",
        }
        fix = likely.get(name, "set data.workers=0 to see where")
    else:
        how, fix = f"ended with status {status}", "set data.workers=0 to see why"
    return f"a loader process {how}: {fix}. The run goes on from its last checkpoint when it is started again"


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB" if n >= 2**20 else f"{n / 2**10:.0f} KiB"
