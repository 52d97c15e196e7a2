"""One program at a time, in a process of its own that stays: what runs, how far it is, and how to stop it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import ENDED_BY_USER, UserError

LAST_LINES = 12  # of what a program says, that are shown
PATIENCE_S = 20.0
COMMAND = (sys.executable, "-m", f"{__package__}.worker")


@dataclass
class State:
    """How far a program is. what: its bar's name; done, of: its parts; left: their time, as MM:SS. lines: what it
    said last. status: its exit status, once it has ended."""

    what: str = "starting"
    done: int = 0
    of: int = 0
    left: str = ""
    lines: list[str] = field(default_factory=list)
    status: int | None = None
    seconds: float = 0.0

    def hear(self, message: dict[str, Any]) -> None:
        if "bar" in message:
            self.what, self.done, self.of, self.left = message["bar"]
        elif "text" in message:
            self.lines = [*self.lines, message["text"]][-LAST_LINES:]
        elif "end" in message:
            self.status = message["end"]


class Worker:
    """The process. It starts with the first program, and again where it was lost.

    command: what it runs. patience: seconds between asking a program to stop and ending its process.
    """

    def __init__(self, command: Sequence[str] = COMMAND, patience: float = PATIENCE_S) -> None:
        self._command, self._patience = list(command), patience
        self._process: subprocess.Popen[str] | None = None
        self._busy, self._changing = threading.Lock(), threading.Lock()
        self._number = 0  # of the program that runs, or ran last

    def run(self, words: list[str], hear: Callable[[dict[str, Any]], None]) -> None:
        """Runs `latentvid WORDS` and hands on its messages; the last says {"end": status}. Waits where another runs."""
        with self._busy:
            process = self._begin(words)
            for line in process.stdout:
                message = json.loads(line)
                hear(message)
                if "end" in message:
                    return
            code = process.wait()
            hear({"text": f"error: the process ended ({_reason(code)}): the next one starts anew"})
            hear({"end": code or 1})

    def _begin(self, words: list[str]) -> subprocess.Popen[str]:
        with self._changing:
            self._number += 1
            if self._process is None or self._process.poll() is not None:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
                # a session of its own: Ctrl-C in the terminal is the studio's
                self._process = subprocess.Popen(self._command, **pipes, start_new_session=True)
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
            return self._process

    def stop(self) -> None:
        """Asks the program that runs to stop; ends the process where it has not after `patience`."""
        with self._changing:
            if self._process is None or not self._busy.locked():
                return
            process, number = self._process, self._number
            process.send_signal(signal.SIGINT)

        def end() -> None:
            if self._number == number and self._busy.locked():
                process.kill()

        timer = threading.Timer(self._patience, end)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """Ends the process."""
        with self._changing:
            if self._process is None:
                return
            process, self._process = self._process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError, ValueError):
                pipe.close()


def _reason(code: int) -> str:
    if code >= 0:
        return f"status {code}"
    name = signal.Signals(-code).name
    return f"{name}: out of memory, or stopped" if name == "SIGKILL" else name


class Job:
    """A program as it runs, in a thread of its own: it ends, and `ended` is called with its state, whether or not
    somebody looks."""

    def __init__(self, worker: Worker, words: list[str], ended: Callable[[State], None]) -> None:
        self.state = State()
        self._begun, self._changed, self._over = time.monotonic(), threading.Event(), threading.Event()
        self._worker, self._words, self._ended = worker, words, ended
        threading.Thread(target=self._run, daemon=True, name="studio job").start()

    def _run(self) -> None:
        try:
            self._worker.run(self._words, self._hear)
            self.state.seconds = time.monotonic() - self._begun
            self._ended(self.state)
        except (UserError, OSError, ValueError) as error:
            self.state.hear({"text": f"error: {error}"})
            self.state.status = 1
        finally:
            self._over.set()
            self._changed.set()

    def _hear(self, message: dict[str, Any]) -> None:
        self.state.hear(message)
        self._changed.set()

    def watch(self, every: float = 0.3) -> Iterator[State]:
        """Its state whenever it has changed, at most so often (s), and at least once a second; at last as it ended."""
        while not self._over.is_set():
            self.state.seconds = time.monotonic() - self._begun
            yield self.state
            self._over.wait(every)
            self._changed.wait(1.0)
            self._changed.clear()
        yield self.state

    @property
    def stopped(self) -> bool:
        return self.state.status == ENDED_BY_USER
