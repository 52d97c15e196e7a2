"""Stopping at the next step boundary when a scheduler, or Ctrl-C, asks for it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PREEMPTED = 75  # exit status EX_TEMPFAIL: try again later
INTERRUPTED = 130  # of what Ctrl-C ended
TWICE = 1.0  # seconds after which another Ctrl-C is one more: launchers pass the first one on


class Preempted(SystemExit):
    """The run saved and stopped because it was asked to; the process ends with status 75."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


class StopWaiting(Exception):
    """What ends a wait for data when the run is asked to stop."""


class StopRequest:
    """Inside, SIGTERM and SIGUSR1 only set `asked` to the signal's name, however often they come.

    So does Ctrl-C where `saves`: while there are steps to lose. One more then ends the process at once, also where it
    hangs in a call that Python cannot leave. Before and after that Ctrl-C is KeyboardInterrupt, as always.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self.saves = False
        self._first: float | None = None  # Ctrl-C
        self._grace: float | None = None  # seconds that the current wait may still take; None: nothing is waiting
        self._before: dict[int, object] = {}
        self._pipe = self._woken = -1

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python takes handlers there only
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
            reader, self._pipe = os.pipe()
            os.set_blocking(self._pipe, False)
            self._woken = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True, name="signals").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and not self.saves:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
        if self._grace is not None:
            self._end_the_wait()

    @contextmanager
    def waiting(self, grace: float) -> Iterator[None]:
        """Inside, being asked to stop raises StopWaiting: at once where `grace` is 0, else when the wait takes
        `grace` seconds longer, since another process may be a step ahead and need this one."""
        self._grace = grace
        try:
            if self.asked is not None:
                self._end_the_wait()
            yield
        finally:
            self._grace = None
            if grace and self.asked is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _end_the_wait(self) -> None:
        if not self._grace:
            raise StopWaiting
        signal.signal(signal.SIGALRM, self._time_is_up)
        signal.setitimer(signal.ITIMER_REAL, self._grace)

    def _time_is_up(self, number: int, frame: FrameType | None) -> None:
        if self._grace is not None:
            raise StopWaiting

    def _watch(self, reader: int) -> None:
        """Sees signals when they come, not when the main thread is back in Python."""
        with os.fdopen(reader, "rb", buffering=0) as signals:
            while numbers := signals.read(64):
                if signal.SIGINT in numbers and self.saves:
                    self._interrupted()

    def _interrupted(self) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            if os.environ.get("RANK", "0") == "0":
                os.write(2, b"\nasked to stop: saving after this step; Ctrl-C once more ends at once\n")
        elif now - self._first > TWICE:
            os._exit(INTERRUPTED)

    def _restore(self) -> None:
        if self._pipe >= 0:
            signal.set_wakeup_fd(self._woken)
            os.close(self._pipe)  # ends the thread
            self._pipe = -1
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}
