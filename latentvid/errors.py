"""Errors that a user can mend: one clear message with the fix, never a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input (configuration, file, prompt). The message names the thing and says how to mend it."""


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
