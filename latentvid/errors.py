"""Errors that a user can mend: one clear message with the fix, never a traceback."""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from .places import shown


class UserError(ValueError):
    """Bad input (configuration, file, prompt). The message names the thing and says how to mend it."""


class ClipError(UserError):
    """A clip that cannot be used.

    `reason` is a short stable code to count by: "missing", "empty-file", "unreadable", "truncated", "too-short",
    "no-video", "no-permission", "hangs", "too-large", "hdr", "colours", "other-size" (and, from manifests,
    "empty-caption", "bad-row"). The message names the file and the fix.
    """

    def __init__(self, path: str | os.PathLike, reason: str, message: str):
        super().__init__(f"{shown(path)}: {message}")
        self.path = os.fspath(path)
        self.reason = reason

    def __reduce__(self):  # the default would call __init__ with one argument and fail between worker processes
        return _restore_clip_error, (self.path, self.reason, str(self))


class StorageError(UserError):
    """A file that its storage does not give, whatever the file holds: it counts against no clip.

    why: in words. number: the system's errno, where it gave one. fix: what to do, once it has been waited for in vain.
    """

    def __init__(self, path: str | os.PathLike, why: str, number: int | None = None, fix: str = ""):
        super().__init__(f"{shown(path)}: its storage does not answer ({why}){fix}")
        self.path, self.why, self.number, self.fix = os.fspath(path), why, number, fix

    def __reduce__(self):
        return StorageError, (self.path, self.why, self.number, self.fix)

    def after(self, seconds: float) -> "StorageError":
        """The same, once it has been waited for in vain."""
        fix = (
            f", for {seconds:.0f} s: bring the storage back and start again, no clip was left out for it "
            "(data.retry_s: how long to wait)"
        )
        return StorageError(self.path, self.why, self.number, fix)


def _restore_clip_error(path: str, reason: str, text: str) -> ClipError:
    error = ClipError(path, reason, "")
    error.args = (text,)
    return error


ENDED_BY_USER = 130  # as shells have it for SIGINT
PIPE_CLOSED = 141  # and for SIGPIPE
_FIXES = {
    errno.ENOSPC: "make room, and start again",
    errno.EDQUOT: "make room in your quota, and start again",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose one that you may use, or change its permissions",
    errno.EPERM: "choose one that you may use, or change its permissions",
    errno.EMFILE: "raise the limit of open files (ulimit -n 4096)",
    errno.ENFILE: "close other programs, or raise the system's limit of open files",
    errno.EFBIG: "allow larger files (ulimit -f), or choose another file system",
    errno.EIO: "mend the disk",
    errno.ESTALE: "mount the network file system again",
    errno.ELOOP: "mend the links, which lead back to each other",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOMEM: "close other programs, or ask for less at once",
}


@contextmanager
def user_errors() -> Iterator[None]:
    """Wrap a script's ``main`` (``@user_errors()`` or ``with user_errors():``).

    A :class:`UserError` becomes ``error: message`` on stderr and exit status 2, and so does what the machine refuses:
    memory, files, rights. Ctrl-C and a closed pipe end quietly. Anything else is a bug and keeps its traceback.
    A launcher of several processes gets the message too, and ends what it says itself with it.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        _end(": ".join(filter(None, ["interrupted", str(error)])), ENDED_BY_USER)
    except BrokenPipeError:  # whoever read the output has gone, such as `| head`
        _close_output()
        raise SystemExit(PIPE_CLOSED) from None
    except Exception as error:
        said = message_of(error)
        if said is None:
            raise
        _end(said, 2)


def brief(error: BaseException, most: int = 200) -> str:
    """What a library said, in one line of at most so many characters."""
    return " ".join(str(error).split())[:most]


def message_of(error: BaseException) -> str | None:
    """What to tell a user of an error in one line; None for a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        return f"out of memory ({text or 'refused by the system'}): ask for less at once, or for smaller sizes"
    if type(error).__name__ == "SafetensorError" and "I/O error" in text:  # which holds neither name nor errno
        return f"a file of tensors cannot be written ({text.partition('I/O error: ')[2]}): make room, and start again"
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        fix = _FIXES.get(error.errno)
        return f"{where}{error.strerror or os.strerror(error.errno)}{f': {fix}' if fix else ''}"
    return None


def print_line(text: str) -> None:
    """A line on stderr in one write: `print` makes two, and those of unbuffered processes (a launcher's) mix."""
    print(f"{text}\n", end="", file=sys.stderr, flush=True)


def _end(message: str, status: int) -> NoReturn:
    print_line(f"error: {message}")
    _tell_launcher(f"error: {message}")
    raise SystemExit(status) from None


def _tell_launcher(line: str) -> None:
    """torch's launcher, which accelerate's is made of, shows last what the process that failed first left in a file."""
    if not (file := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        return
    about = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
    with contextlib.suppress(OSError), open(file, "x", encoding="utf-8") as output:
        json.dump({"message": about}, output)


def _close_output() -> None:
    """Keeps Python from failing once more as it flushes what nobody reads."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # not a file: nothing is flushed to it
        sys.stdout = None
