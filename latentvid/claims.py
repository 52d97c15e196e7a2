"""Who is at work on what, among processes that share a file system and nothing else.

A claim is a file that exactly one process can make, and that it touches while it lives. A claim whose process is gone
is taken over by making the next one, NAME.1 after NAME.0: nothing is removed under the eyes of others.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

BEAT_S = 5.0
DEAD_S = 60.0  # without a beat, by the file system's own clock


class Claim:
    """What this process holds until `release`."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number, self.file = path, number, _numbered(path, number)
        self._ended = threading.Event()
        threading.Thread(target=_beat, args=(self.file, self._ended), daemon=True, name="claim").start()

    def release(self) -> None:
        self._ended.set()
        for number in range(self.number, -1, -1):
            _numbered(self.path, number).unlink(missing_ok=True)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def claim(path: Path) -> Claim | None:
    """The claim of this name, or None where a living process has it. The folder must be there."""
    number, file = _newest(path)
    if file is not None:
        if _lives(file):
            return None
        number += 1
    try:
        place = os.open(_numbered(path, number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:  # another was quicker
        return None
    with os.fdopen(place, "w", encoding="utf-8") as file:
        json.dump(_me(), file)
    return Claim(path, number)


def holder(path: Path) -> str | None:
    """Who has the claim, in words; None where nobody that lives does."""
    _, file = _newest(path)
    if file is None or not _lives(file):
        return None
    about = _read(file)
    return f"process {about.get('pid')} on {about.get('host')}"


def claimed_by(path: Path, seconds: float = 0.2) -> Claim:
    """The claim of this name, as soon as no other living process has it."""
    while (found := claim(path)) is None:
        time.sleep(seconds)
    return found


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _newest(path: Path) -> tuple[int, Path | None]:
    ends = (name.removeprefix(f"{path.name}.") for name in os.listdir(path.parent) if name.startswith(f"{path.name}."))
    numbers = [int(end) for end in ends if end.isdecimal()]
    return (max(numbers), _numbered(path, max(numbers))) if numbers else (0, None)


def _beat(file: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        try:
            os.utime(file)
        except OSError:  # removed with its folder, or the storage does not answer: the next beat tells
            continue


def _me() -> dict[str, Any]:
    """This process, so that others on its machine can tell whether it lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "space": _space(), "started": _started(os.getpid())}


def _space() -> str | None:
    """What processes share whose numbers mean the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process started: a number that is given anew is another process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):  # just made, or just gone
        return {}


def _lives(file: Path) -> bool:
    about = _read(file)
    if about.get("space") is not None and about["space"] == _space():
        return about.get("started") == _started(about.get("pid", 0))
    try:
        return _now(file.parent) - os.stat(file).st_mtime < DEAD_S
    except FileNotFoundError:
        return False


def _now(folder: Path) -> float:
    """The time by the file system's clock, which may be another machine's."""
    probe = folder / f".clock-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    probe.touch()
    try:
        return os.stat(probe).st_mtime
    finally:
        probe.unlink(missing_ok=True)
