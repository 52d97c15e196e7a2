"""Work that the processes of a launch share piece by piece: who is free takes the next, in no collective.

A collective ends after ten minutes (NCCL, gloo), and with it the work of all that came late. Here the processes speak
through the store where they found each other: who has which piece, who lives, and whether one ended in an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import torch

from ...errors import UserError
from ...world import shared_store

BEAT_S = 5.0
SILENT_S = 60.0  # without a beat a process is taken for dead, and its piece is made by another
PAUSE_S = 0.1


class SharedWork:
    """Pieces 0 to count - 1, each of which one process gets; inside `with`, whose end tells the others.

        with SharedWork("encode", 12) as work:
            for number in work: ...

    A process that ends in an error ends the others, with its message, at their next piece.
    """

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count, self.store = name, count, shared_store()
        self.rank, self.world = 0, 1
        if self.store is not None:
            self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._ended = threading.Event()
        self._beats: dict[int, tuple[bytes, float]] = {}  # of each other process: its last one, and when it was new

    def __enter__(self) -> SharedWork:
        if self.store is not None:
            threading.Thread(target=self._beat, daemon=True, name="beat").start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if self.store is None:
            return
        if error is not None and not isinstance(error, _OtherEnded):
            message = str(error) if isinstance(error, UserError) else f"process {self.rank} ended: {error!r}"
            self.store.set(self._key("failed"), message)
        self.store.add(self._key("left"), 1)
        end = time.monotonic() + SILENT_S
        while self.rank == 0 and time.monotonic() < end and self.store.add(self._key("left"), 0) < self.world:
            time.sleep(PAUSE_S)  # the store may be this process's: the others must have read the last word
        self._ended.set()

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            if self.store is None:
                yield number
            elif self._take(number, None):
                yield from self._done(number)
        while self.store is not None and self.store.add(self._key("done"), 0) < self.count:
            self._listen()
            for rank in self._dead():
                for number in range(self.count):
                    if self._take(number, rank):
                        yield from self._done(number)
            time.sleep(PAUSE_S)

    def _done(self, number: int) -> Iterator[int]:
        self._listen()
        yield number
        if self.store.compare_set(self._key(f"end/{number}"), "", "1") == b"1":
            self.store.add(self._key("done"), 1)

    def _take(self, number: int, dead: int | None) -> bool:
        """Whether the piece is this process's now: nobody's before, or an unfinished one of a process that is dead."""
        mine = f"{self.rank}"
        if dead is None:
            return self.store.compare_set(self._key(f"of/{number}"), "", mine) == mine.encode()
        if not self.store.check([self._key(f"of/{number}")]) or self.store.check([self._key(f"end/{number}")]):
            return False
        if self.store.get(self._key(f"of/{number}")) != f"{dead}".encode():
            return False
        return self.store.compare_set(self._key(f"of/{number}"), f"{dead}", mine) == mine.encode()

    def _listen(self) -> None:
        if self.store.check([self._key("failed")]):
            raise _OtherEnded(self.store.get(self._key("failed")).decode())

    def _dead(self) -> list[int]:
        now, found = time.monotonic(), []
        for rank in range(self.world):
            key = self._key(f"beat/{rank}")
            beat = self.store.get(key) if self.store.check([key]) else b""
            if rank == self.rank or self._beats.get(rank, (None, 0.0))[0] != beat:
                self._beats[rank] = beat, now
            elif now - self._beats[rank][1] > SILENT_S:
                found.append(rank)
        return found

    def _beat(self) -> None:
        number = 0
        while not self._ended.is_set():
            try:
                self.store.set(self._key(f"beat/{self.rank}"), str(number := number + 1))
            except RuntimeError:  # the store's process is gone: the work will meet it
                return
            self._ended.wait(BEAT_S)

    def _key(self, what: str) -> str:
        return f"latentvid/{self.name}/{what}"


class _OtherEnded(UserError):
    """Another process of this launch ended in an error; the message is its own."""
