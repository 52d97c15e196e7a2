"""One writer for a folder: a lock that works on network file systems, and that the dead do not keep.

The lock is the file FOLDER/.lock, which names its holder. It is made by a hard link, which is there or not on every
file system. While it is held its time is renewed every `BEAT` seconds. Who finds it held by a process of the same
machine asks the system whether that still runs; of another machine's process it waits for the next sign of life.
Clocks of machines are not compared.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from .errors import UserError, print_line

NAME = ".lock"
BEAT = 10.0  # seconds between signs of life
SILENT = 60.0  # seconds without one after which a holder on another machine counts as dead
SURE = 2.5 * BEAT  # the same, where the last sign of life is older than `SILENT` anyway


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. started: of the process, in ticks since the machine's start: numbers of processes come again.

    machine: name, start and process name space, in which alone the number means something.
    """

    host: str
    machine: str
    pid: int
    started: int
    since: str
    token: str

    @classmethod
    def this(cls) -> Holder:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        started = (_process(os.getpid()) or ("", 0))[1]
        return cls(socket.gethostname(), _machine(), os.getpid(), started, since, uuid.uuid4().hex)

    @classmethod
    def read(cls, text: str) -> Holder | None:
        """From the file; None where it is not whole (a file system without links, or damage)."""
        try:
            found = cls(**json.loads(text))
        except (ValueError, TypeError):
            return None
        fits = all(isinstance(value, int) for value in (found.pid, found.started)) and found.pid > 0
        return found if fits and isinstance(found.machine, str) and isinstance(found.token, str) else None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def alive(self) -> bool | None:
        """Whether the process still runs; None where this machine cannot know."""
        if self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (PermissionError, OverflowError):
            return None
        found = _process(self.pid)
        return None if found is None else found[0] not in "ZX" and found[1] == self.started


def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _process(pid: int) -> tuple[str, int] | None:
    """State and start of a process, in ticks; None where the system does not show them."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return words[0], int(words[19])
    except (OSError, IndexError, ValueError):
        return None


class FolderLock:
    """Held inside `with`; UserError where another holds it. `fix`: what the user may do instead."""

    def __init__(self, folder: str | os.PathLike, fix: str = "wait for it, stop it, or give another folder") -> None:
        self.folder, self.fix = Path(folder), fix
        self.file = self.folder / NAME
        self.me = Holder.this()
        self._lost: Holder | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lock")

    def __enter__(self) -> FolderLock:
        try:
            self._take()
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror or error}): {self.fix}") from None
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(BEAT)
        with contextlib.suppress(OSError):
            if self._mine():
                self.file.unlink()

    def check(self) -> None:
        """Raises UserError where another holds it by now, as when this process was halted for minutes."""
        with contextlib.suppress(OSError):
            self._mine()
        if self._lost is not None:
            raise UserError(
                f"{self.folder} was taken over by {self._lost}, which had no sign of life of this process for "
                f"{SILENT:.0f} s: this one stops, and writes no more"
            )

    # --- taking it ---

    def _take(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = self.folder / f"{NAME}.{self.me.token}"
        mine.write_text(json.dumps(asdict(self.me)), encoding="utf-8")
        try:
            watched, since, said = None, 0.0, False
            while not self._place(mine, self.file):
                found = _look(self.file)
                if found is None:
                    continue  # let go meanwhile
                holder, beat = found
                alive = None if holder is None else holder.alive()
                if beat != watched:
                    if watched is not None or alive:
                        self._refuse(holder)
                    watched, since = beat, time.monotonic()
                os.utime(mine)  # the file system's clock, not this machine's
                old = mine.stat().st_mtime - beat > SILENT
                if alive is False or time.monotonic() - since > (SURE if old else SILENT):
                    self._take_over(mine, holder, beat)
                    watched = None
                    continue
                if not said:
                    print_line(_waiting(self.folder, holder))
                    said = True
                time.sleep(min(1.0, BEAT / 10))
        finally:
            mine.unlink(missing_ok=True)

    def _place(self, mine: Path, where: Path) -> bool:
        """Puts the lock in its place; False where there is one."""
        try:
            os.link(mine, where)
            return True
        except FileExistsError:
            if where.is_symlink() or (where.exists() and not where.is_file()):
                raise UserError(f"{where} is no regular file: remove it") from None
            return mine.stat().st_nlink == 2 and self._holds(where)  # an answer of the server was lost
        except (PermissionError, NotImplementedError):
            pass  # no links on this file system
        except OSError as error:
            if error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                raise
        try:
            with where.open("x", encoding="utf-8") as file:
                file.write(mine.read_text(encoding="utf-8"))
            return True
        except FileExistsError:
            return False

    def _take_over(self, mine: Path, holder: Holder | None, beat: float) -> None:
        """Removes the lock of a dead holder; of several that try, one at a time."""
        guard = self.folder / f"{NAME}.{'unknown' if holder is None else holder.token}.heir"
        if not self._place(mine, guard):
            found = _look(guard)
            if found is not None:
                dead = found[0] is not None and found[0].alive() is False
                if dead or mine.stat().st_mtime - found[1] > SILENT:
                    guard.unlink(missing_ok=True)  # it died while it took over
            time.sleep(min(0.2, BEAT))
            return
        try:
            if _look(self.file) == (holder, beat):  # else another was faster
                self.file.unlink()
        finally:
            guard.unlink(missing_ok=True)

    def _refuse(self, holder: Holder | None) -> None:
        who = "another process, which its file does not name" if holder is None else str(holder)
        raise UserError(f"{self.folder} is in use by {who}: {self.fix}")

    # --- holding it ---

    def _holds(self, where: Path) -> bool:
        found = _look(where)
        return found is not None and found[0] == self.me

    def _mine(self) -> bool:
        """Whether the lock is still this process's; notes who took it."""
        found = _look(self.file)
        if found is not None and found[0] is not None and found[0] != self.me:
            self._lost = found[0]
        return found is not None and found[0] == self.me

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            with contextlib.suppress(OSError):  # a network that is away comes back
                if self._mine():
                    os.utime(self.file)


def _look(file: Path) -> tuple[Holder | None, float] | None:
    """Who holds a lock, and its last sign of life; None where there is no file. To open it asks the server anew."""
    try:
        with file.open(encoding="utf-8", errors="replace") as content:
            return Holder.read(content.read(10_000)), os.fstat(content.fileno()).st_mtime
    except FileNotFoundError:
        return None


def held_by(folder: str | os.PathLike) -> str | None:
    """Who holds a folder's lock, in words, as far as can be seen at once; None where nobody does any more."""
    found = _look(Path(folder) / NAME)
    if found is None:
        return None
    holder, beat = found
    alive = None if holder is None else holder.alive()
    if alive is None:  # another machine's: by this one's clock, which is enough for a list
        alive = time.time() - beat < SILENT
    return str(holder or "another process") if alive else None


def _waiting(folder: Path, holder: Holder | None) -> str:
    return f"{folder} is held by {holder or 'another process'}: waiting up to {SILENT:.0f} s for a sign of life"
