"""Clips that must not be touched again, shared by the processes of a run; a time limit for reads that hang."""

from __future__ import annotations

import json
import os
import queue
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ClipError
from ..places import shown

T = TypeVar("T")

# Faults of a file as a whole. Others may be of one window: the file's other windows stay in use, or which clips are
# replaced would depend on which window a run happens to meet first.
_WHOLE_FILE = frozenset({"missing", "empty-file", "no-permission", "no-video", "hangs"})


class Quarantine:
    """Which clips failed, and why: {path as it may be shown: reason}.

    file: JSON lines {"path", "reason", "message"}, a line a clip, to which every process of the run appends and from
    which it learns what the others (and, on resuming, those before it) met. Delete it to have all clips tried again.
    None: in memory only.
    """

    def __init__(self, file: str | os.PathLike | None = None) -> None:
        self.file = None if file is None else Path(file)
        self.reasons: dict[str, str] = {}
        self._read = 0  # bytes of the file

    def add(self, error: ClipError) -> bool:
        """Records a clip; False where it was known already."""
        self._refresh()
        path = shown(error.path)
        if path in self.reasons:
            return False
        self.reasons[path] = error.reason
        if self.file is not None:
            line = json.dumps({"path": path, "reason": error.reason, "message": str(error)}) + "\n"
            self.file.parent.mkdir(parents=True, exist_ok=True)
            place = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(place, line.encode())  # one write: lines of several processes do not mix
            finally:
                os.close(place)
        return True

    def check(self, path: str) -> None:
        """Raises ClipError where this file is not to be opened again."""
        self._refresh()
        reason = self.reasons.get(shown(path))
        if reason in _WHOLE_FILE:
            raise ClipError(path, reason, f"is in quarantine ({reason})")

    def knows(self, path: str) -> bool:
        """Whether this file failed, as far as was read."""
        return shown(path) in self.reasons

    def _refresh(self) -> None:
        try:
            if self.file is None or os.stat(self.file).st_size == self._read:
                return
            with open(self.file, "rb") as file:
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return
        self._read += len(whole) + len(newline)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                self.reasons.setdefault(record["path"], record["reason"])
            except (ValueError, TypeError, KeyError):  # of a process that was killed while it wrote
                continue


class Hangs(TimeoutError):
    """A call that did not return in time."""


class Watched:
    """Calls functions in a daemon thread and gives up on one that takes too long.

    The thread is then abandoned (nothing can stop a read that the system does not answer); it does not keep the
    program from ending. Copies, in other processes too, start their own thread.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._calls: queue.SimpleQueue | None = None
        self._process = -1  # whose thread it is: a fork has none

    def __reduce__(self):
        return Watched, (self.seconds,)

    def __call__(self, function: Callable[..., T], *arguments: Any) -> T:
        """The function's value or exception; Hangs where it has not returned after `seconds`."""
        if self._process != os.getpid():
            self._process, self._calls = os.getpid(), queue.SimpleQueue()
            weakref.finalize(self, self._calls.put, None)
            threading.Thread(target=_serve, args=(self._calls,), daemon=True, name="reader").start()
        answer: queue.SimpleQueue = queue.SimpleQueue()
        self._calls.put((function, arguments, answer))
        try:
            value, error = answer.get(timeout=self.seconds)
        except queue.Empty:
            self._calls.put(None)  # should it ever return, the thread ends
            self._process = -1
            raise Hangs(f"no answer within {self.seconds:g} s") from None
        if error is not None:
            raise error
        return value


def _serve(calls: queue.SimpleQueue) -> None:
    while (call := calls.get()) is not None:
        function, arguments, answer = call
        try:
            answer.put((function(*arguments), None))
        except BaseException as error:  # handed to the caller
            answer.put((None, error))
        del call, function, arguments, answer  # or a clip stays in memory until the next call
