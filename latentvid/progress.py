"""Signs of life: work that takes long says at least every 30 seconds what it is at."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

EVERY_S = 30.0  # between two lines, at most


class Heartbeat:
    """Inside, `line()` is written whenever nothing has been for `every` seconds, from a thread of its own.

    Call `heard` when something else is written. file: stderr if not given.
    """

    def __init__(self, line: Callable[[], str], every: float = EVERY_S, file: TextIO | None = None) -> None:
        self._line, self._every, self._file = line, every, file
        self._last, self._done = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def heard(self) -> None:
        self._last = time.monotonic()

    def _run(self) -> None:
        while not self._done.wait(max(0.01, self._last + self._every - time.monotonic())):
            if time.monotonic() - self._last >= self._every:
                self.heard()
                print(self._line(), file=self._file or sys.stderr, flush=True)

    def __enter__(self) -> Heartbeat:
        self.heard()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()


@contextmanager
def phase(
    what: str, total: int | None = None, *, every: float = EVERY_S, file: TextIO | None = None
) -> Iterator[Callable[[], None]]:
    """Inside, a line every 30 seconds says what goes on and for how long, on the main process of a launch.

    total: how many parts it has; call what this gives after each.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda: None
        return
    done, begun = 0, time.monotonic()

    def advance() -> None:
        nonlocal done
        done += 1

    def line() -> str:
        took = time.monotonic() - begun
        parts = [f"{done:,} of {total:,}"] if total else []
        left = [f"about {clock(took / done * (total - done))} left"] if total and done else []
        return f"{what}: {', '.join([*parts, f'{clock(took)} so far', *left])}"

    with Heartbeat(line, every, file):
        yield advance


def clock(seconds: float) -> str:
    """[H:]MM:SS"""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"
