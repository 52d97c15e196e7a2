"""Stopping at the next step boundary when a scheduler asks for it."""

from __future__ import annotations

import signal
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PREEMPTED = 75  # exit status EX_TEMPFAIL: try again later


class Preempted(SystemExit):
    """The run saved and stopped because it was asked to; the process ends with status 75."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


class StopRequest:
    """Inside, SIGTERM and SIGUSR1 only set `asked` to the signal's name, however often they come."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python takes handlers there only
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}
