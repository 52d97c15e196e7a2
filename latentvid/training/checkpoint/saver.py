"""Writes checkpoints from all processes, beside training if asked; a checkpoint is there when every part is.

The processes agree through files of the checkpoint's folder, not through collectives, so that writing may go on in a
thread while training communicates.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ...errors import UserError
from ...world import from_main
from ..parallel.pieces import not_finite
from .checkpoint import CheckpointStore
from .records import State, read_record

logger = logging.getLogger(__name__)


class Saver:
    """`parts`: processes that write (1: the main one alone). `barrier`: all processes meet, however long it takes.
    `check`: raises UserError where the folder is not this run's any more. `part_timeout`: seconds that the main process
    waits for the slowest one's files once its own are written."""

    def __init__(
        self,
        store: CheckpointStore,
        rank: int,
        parts: int,
        barrier: Callable[[], None],
        beside: bool = False,
        check: Callable[[], None] = lambda: None,
        part_timeout: float = 1800.0,
    ) -> None:
        self.store, self.rank, self.parts, self.barrier, self.beside = store, rank, parts, barrier, beside
        self.check, self.part_timeout = check, part_timeout
        self._thread: threading.Thread | None = None
        self._error: tuple[int, BaseException] | None = None  # of which step

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """`tensors`: {"model": {name: tensor}, ...} of this process, which must not change afterwards.

        All processes call it. Without `beside` the checkpoint is in place on return. Raises UserError where this
        process's part, or on the main one any, could not be written; the last good checkpoint stays.
        """
        self.finish()
        self.barrier()
        if self.rank == 0:
            self.check()
            try:
                self.store.begin(step)
            except OSError as error:
                self._error = step, error
                self.finish()
        self.barrier()
        if self.rank < self.parts:
            self._thread = threading.Thread(target=self._write, args=(step, tensors, state), name="checkpoint")
            self._thread.start()
        if not self.beside:
            self.finish()
            self.barrier()

    def finish(self) -> None:
        """Waits for what is being written; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is None:
            return
        (step, error), self._error = self._error, None
        if self.rank == 0:
            self.store.abandon(step)
        good = [self.store.path(s).name for s in self.store.steps()]
        again = f"it goes on from {good[-1] if good else 'the start'}"
        if isinstance(error, UserError):
            raise UserError(
                f"checkpoint of step {step} in {self.store.root}: {error}; started again, {again}"
            ) from None
        raise UserError(
            f"a checkpoint could not be written to {self.store.root} ({error}): make room or mend the disk and start "
            f"again; {again}"
        ) from error

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        try:
            folder = self.store.partial(step)
            suffix = "" if self.parts == 1 else f"-{self.rank:05d}-of-{self.parts:05d}"
            files = [folder / f"{kind}{suffix}.safetensors" for kind in tensors]
            for file, named in zip(files, tensors.values(), strict=True):
                if (name := not_finite(named)) is not None:
                    raise UserError(f"{name} is not finite, so it is not saved: lower optim.lr or optim.clip")
                save_file(dict(named), file)
            if self.rank:
                self.store.seal(step, self.rank, files)
                return
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
            self._wait_for_parts(step)
            self.store.commit(step)
        except Exception as error:  # handed to the training thread by finish()
            self._error = step, error

    def _wait_for_parts(self, step: int) -> None:
        limit = time.monotonic() + self.part_timeout
        while missing := self.store.missing_parts(step, range(1, self.parts)):
            if time.monotonic() > limit:
                raise TimeoutError(
                    f"processes {missing} have not written their parts in {self.part_timeout:g} s "
                    "(train.collective_timeout_s)"
                )
            time.sleep(0.01)


def newest_for_all(store: CheckpointStore) -> Path | None:
    """The newest whole checkpoint, chosen (and checked) by the main process, which the others wait for.

    Raises UserError where all are damaged, and on a process that cannot see it.
    """

    def choose() -> str | None:
        folder = store.newest()
        return None if folder is None else folder.name

    name = from_main(choose)
    if name is None:
        return None
    folder = store.root / name
    if not folder.is_dir():
        raise UserError(
            f"the run goes on from {folder}, which this process cannot see: run.dir must lie on a file system that all "
            "nodes share"
        )
    return folder


def newest_state(store: CheckpointStore) -> tuple[Path | None, State | None]:
    """The newest whole checkpoint and what its state.json holds; none where a run is at its start."""
    folder = newest_for_all(store)
    return folder, None if folder is None else read_record(folder / "state.json", State, folder)
