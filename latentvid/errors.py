"""Errors that a user can mend: one clear message with the fix, never a traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input (configuration, file, prompt). The message names the thing and says how to mend it."""


class ClipError(UserError):
    """A clip that cannot be used.

    `reason` is a short stable code to count by: "missing", "empty-file", "unreadable", "truncated", "too-short",
    "no-video", "hangs" (and, from manifests, "empty-caption", "bad-row"). The message names the file and the fix.
    """

    def __init__(self, path: str | os.PathLike, reason: str, message: str):
        super().__init__(f"{os.fspath(path)}: {message}")
        self.path = os.fspath(path)
        self.reason = reason

    def __reduce__(self):  # the default would call __init__ with one argument and fail between worker processes
        return _restore_clip_error, (self.path, self.reason, str(self))


def _restore_clip_error(path: str, reason: str, text: str) -> ClipError:
    error = ClipError(path, reason, "")
    error.args = (text,)
    return error


@contextmanager
def user_errors() -> Iterator[None]:
    """Wrap a script's ``main`` (``@user_errors()`` or ``with user_errors():``).

    A :class:`UserError` becomes ``error: message`` on stderr and exit status 2; anything else is a bug and keeps its
    traceback.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
