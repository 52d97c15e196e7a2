"""A process that runs programs one after another and keeps what they load: `python -m latentvid.studio.worker`.

It reads a command a line, a JSON list of words, and writes messages, a JSON object a line: {"text": line}, {"bar":
[what, done, of, left]} and, at its end, {"end": status}. A SIGINT stops the program, not the process.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from ..__main__ import main as run_command
from ..errors import ENDED_BY_USER
from ..pipelines.loading import pipelines_kept

Send = Callable[[dict[str, Any]], None]
BUG = 1
# tqdm's line: "sampling:  25%|##5  | 4/16 [00:01<00:03,  3.2it/s]"
BAR = re.compile(r"(?:(?P<what>.*?): )?\s*\d+%\|.*\|\s*(?P<done>\d+)/(?P<of>\d+) \[[\d:]+<(?P<left>[\d:?]+)")


class Said(io.TextIOBase):
    """A terminal, to those who write to it: each line, and each state of a progress bar, is sent."""

    def __init__(self, send: Send) -> None:
        self._send, self._line = send, ""

    def isatty(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._line = re.split(r"[\r\n]", self._line + text)
        for line in lines:
            self._say(line)
        if BAR.match(self._line):  # a bar ends with the next one's beginning
            self._say(self._line)
            self._line = ""
        return len(text)

    def _say(self, line: str) -> None:
        line = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).strip()
        if found := BAR.match(line):
            self._send({"bar": [found["what"] or "", int(found["done"]), int(found["of"]), found["left"]]})
        elif line:
            self._send({"text": line})


def serve(commands: Iterable[str], send: Send) -> None:
    """Runs the commands, each a JSON list of a program's name and its words."""
    with pipelines_kept() as kept:
        for line in commands:
            status = run(json.loads(line), send)
            kept.ended()
            send({"end": status})


def run(words: list[str], send: Send) -> int:
    """The program's exit status. What it says is sent, not printed."""
    before = sys.argv, sys.stdout, sys.stderr
    sys.argv, sys.stdout, sys.stderr = ["latentvid", *words], Said(send), Said(send)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run_command()
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else BUG if stop.code else 0
    except KeyboardInterrupt:
        return ENDED_BY_USER
    except BaseException as error:
        traceback.print_exc(file=before[2])
        send({"text": f"error: {type(error).__name__}: {error} (the studio's terminal shows where)"})
        return BUG
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.argv, sys.stdout, sys.stderr = before


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no message

    def send(message: dict[str, Any]) -> None:
        try:
            print(json.dumps(message), file=out, flush=True)
        except (BrokenPipeError, ValueError):  # the studio has gone
            os._exit(BUG)

    serve(sys.stdin, send)


if __name__ == "__main__":
    main()
