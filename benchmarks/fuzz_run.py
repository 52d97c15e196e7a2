"""One case of fuzz.py: a program of this project in a forked process, with limits, and what became of it.

The parent has imported everything, so that a case costs a fork and the program's own work.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import runpy
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 20.0  # that a case may take, without what its main thread waited for a processor
MEMORY = 3 << 30  # address space beyond what the parent has
FILE = 1 << 30  # bytes of a file that is written
GOOD = ("refused", "taken")
BAD = {
    "traceback": "ends in a traceback",
    "unnamed": "refused, but no single message that names what is wrong",
    "hang": "did not end",
    "memory": f"more than {MEMORY >> 30} GiB",
    "crash": "killed by a signal",
    "silent": "took without a word what cannot work",
    "wrongly refused": "refused what is right",
    "lost": "refused, and what was there before is gone, or work already done",
    "network": "looked for another machine",
    "ran code": "imported what a file names",
    "no case": "the fuzz itself failed to make the case",
}


@dataclass(frozen=True)
class Case:
    """A call of a program, and what is known of how it must end.

    program: a script, or a module after "-m ". what: what was spoilt, in words. names: one of them must stand in a
    refusal. must: "fail"; "pass"; "say": fail, or name it; None: both will do. keeps: files that a refusal must leave
    as they are. work_first: words in the output by which a refusal comes too late. file_bytes, open_files: the most
    that the system gives it: what a full disk or a small `ulimit -n` look like.
    """

    program: str
    arguments: list[str]
    what: str
    names: tuple[str, ...]
    must: str | None = None
    keeps: tuple[Path, ...] = ()
    work_first: str | None = None
    file_bytes: int | None = None
    open_files: int | None = None


def run_program(program: str, arguments: list[str]) -> int:
    """Runs it as the main program of this process; its exit status, 1 after a traceback."""
    sys.argv = [program, *arguments]
    try:
        if program.startswith("-m "):
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
            runpy.run_module(program[3:], run_name="__main__", alter_sys=True)
        else:
            sys.argv[0] = str(ROOT / program)
            sys.path.insert(0, str((ROOT / program).parent))
            runpy.run_path(str(ROOT / program), run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(work: Callable[[], int], folder: Path, *, memory: int | None = None) -> int:
    """Starts `work` in a process of its own session, whose output goes to `folder`; its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory,) * 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
            _close_network(folder / "network")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(status & 0xFF)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _close_network(note: Path) -> None:
    """No name is looked up and no other machine reached; the attempt is noted."""
    connect = socket.socket.connect

    def refuse(*words: object, **_: object):
        note.write_text(repr(words))
        raise OSError("the network is closed in this test")

    def only_here(self: socket.socket, address: object):
        return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

    socket.getaddrinfo = refuse
    socket.socket.connect = only_here


@dataclass
class Running:
    """A case that has been started."""

    number: int
    pid: int
    folder: Path
    started: float

    def seconds(self) -> float:
        """Since the start, without what the process itself waited for a processor."""
        try:
            waited = int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            waited = 0.0
        return time.monotonic() - self.started - waited

    def end(self) -> None:
        """Ends what is left of it: loader processes too."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Outcome:
    number: int
    area: str
    kind: str
    what: str
    command: str
    said: str
    seconds: float


def start(number: int, folder: Path, make: Callable[[], Case]) -> Running:
    """Makes a case and runs it, in the process that is started."""
    folder.mkdir(parents=True)

    def work() -> int:
        case = make()
        kept = {str(path): path.read_bytes().hex() for path in case.keeps}
        record = {k: v for k, v in vars(case).items() if k != "keeps"} | {"kept": kept}
        (folder / "case.json").write_text(json.dumps(record))
        os.chdir(folder)
        for limit, most in ((resource.RLIMIT_FSIZE, case.file_bytes), (resource.RLIMIT_NOFILE, case.open_files)):
            if most is not None:
                resource.setrlimit(limit, (most, most))
        return run_program(case.program, case.arguments)

    return Running(number, fork(work, folder, memory=MEMORY), folder, time.monotonic())


def judge(run: Running, area: str, status: int, late: bool) -> Outcome:
    """The class of a case that has ended (`status` as `os.waitpid` gives it), or was ended because it was late."""
    out, err = ((run.folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    seconds = time.monotonic() - run.started
    if not (run.folder / "case.json").exists():
        return Outcome(run.number, area, "no case", "", "", err[-2000:], seconds)
    case = json.loads((run.folder / "case.json").read_text())
    kind = "hang" if late else _kind(run.folder, case, status, out, err)
    words = " ".join([case["program"], *case["arguments"]])
    said = _message(err) if kind in GOOD else (out[-300:] + err[-1700:])
    return Outcome(run.number, area, kind, case["what"], words, said, seconds)


def _message(err: str) -> str:
    """What follows the first `error:`."""
    found = re.search(r"(?m)^(?:error: |\S[^\n]*: error: )", err)
    return err[found.start() :] if found else ""


def _kind(folder: Path, case: dict, status: int, out: str, err: str) -> str:
    if (folder / "network").exists():
        return "network"
    if (folder / "planted").exists():
        return "ran code"
    if re.search("MemoryError|allocate memory|bad_alloc|ArrowMemoryError", err) and "\nTraceback" in f"\n{err}":
        return "memory"
    if os.WIFSIGNALED(status):
        return "crash"
    if "Traceback (most recent call last)" in err:
        return "traceback"
    named = any(name.lower() in (said := f"{out}\n{err}").lower() for name in case["names"])
    if os.WEXITSTATUS(status) == 0:
        return "silent" if case["must"] == "fail" or (case["must"] == "say" and not named) else "taken"
    message = _message(err)
    clear = len(re.findall(r"(?m)^(?:error: |\S[^\n]*: error: )", err)) == 1
    if not clear or not any(name.lower() in message.lower() for name in case["names"]):
        return "unnamed"
    if any(not _starts_with(Path(path), text) for path, text in case["kept"].items()):
        return "lost"
    if case["work_first"] and case["work_first"] in said:
        return "lost"
    return "wrongly refused" if case["must"] == "pass" else "refused"


def _starts_with(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes().hex().startswith(text)
