"""Telling a fault of the storage, which passes or stops the run, from a fault of a file, which is the file's for good.

Network file systems lose a handle, time out, or do not show a file for a moment. Nothing of that says that a file is
bad: it is read again, after growing pauses. Only what a file holds, its lasting absence, or a refusal of permission
counts against it.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from ..errors import ClipError, StorageError
from ..limits import PATIENCE_S
from ..places import is_url, place, redacted
from .access import remote
from .access.files import inside, is_plain, opened

T = TypeVar("T")
logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0
ABSENT_S = 1.75  # for a file that is not there: directories of network file systems may be a moment behind
DOUBTFUL_S = 7.75  # for an "input/output error" of a decoder where the file can be read
READ_AT_MOST = 2**26  # bytes that tell whether a file can be read at all

_NAMES = """ESTALE EIO ETIMEDOUT ENETDOWN ENETUNREACH ENETRESET EHOSTDOWN EHOSTUNREACH ECONNABORTED ECONNREFUSED
ECONNRESET ENOTCONN ESHUTDOWN EREMOTEIO ENOLINK ECOMM EPROTO ENOLCK EBUSY ENODEV ENXIO EMFILE ENFILE EKEYEXPIRED"""
_STORAGE = frozenset(getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name))
CERTAIN = frozenset({"slower-than-fps"})  # told by the frames' times: no reading again would change it
_ABSENT = frozenset({"missing", "empty-file", "no-permission"})  # what a file may be for a moment


def is_storage_fault(error: BaseException) -> bool:
    """Whether an exception of the system (PyAV's carry its number too) says nothing of what the file holds."""
    number = number_of(error)
    return number in _STORAGE or (number is None and isinstance(error, TimeoutError | ConnectionError))


def number_of(error: BaseException) -> int | None:
    """The system's number of a fault, which safetensors' errors have in their words."""
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"\(os error (\d+)\)", str(error))):
        return int(found[1])
    return getattr(error, "errno", None)


def fault_of(path: str | os.PathLike, error: Exception, otherwise: ClipError) -> ClipError | StorageError:
    """What an exception of the system means for a file: a fault of the storage, its absence, a permission, or what
    `otherwise` says of its content. An error of ours is that itself."""
    if isinstance(error, ClipError | StorageError):
        return error
    why = _why(error)
    if is_storage_fault(error):
        return StorageError(path, why, getattr(error, "errno", None))
    if isinstance(error, PermissionError):
        return ClipError(path, "no-permission", f"cannot be opened ({why}); allow this user to read it")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ClipError(path, "missing", f"cannot be found ({why}); correct the path")
    return otherwise


def read_plainly(path: str | os.PathLike) -> None:
    """Reads a file's first bytes and its last one; raises OSError where the storage does not give them."""
    with open(path, "rb", buffering=0) if is_plain(path) else opened(path) as file:
        while file.tell() < READ_AT_MOST and file.read(2**20):
            pass
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        file.read(1)


def patiently(
    read: Callable[[], T],
    path: str | os.PathLike,
    patience_s: float = PATIENCE_S,
    *,
    believed: bool = False,
    plainly: Callable[[str | os.PathLike], None] = read_plainly,
) -> T:
    """What `read` gives of the file `path`, tried again where its failure may pass.

    read: raises ClipError for the file, StorageError or OSError for the storage, TimeoutError where it hangs.
    believed: whether a fault of the file counts at once, as one that is known or will be looked at again.
    plainly: reads the file without a decoder, which tells whose fault a failure is.
    Raises ClipError once another try has made certain that the file is at fault; StorageError where the storage has not
    come back after `patience_s`.
    """
    begun, pause, said = time.monotonic(), FIRST_PAUSE_S, False
    paused: Counter[float] = Counter()  # seconds, by how long the kind of fault is waited for
    while True:
        try:
            return read()
        except (ClipError, StorageError, OSError) as error:
            if isinstance(error, StorageError) and error.fix:  # it has been waited for already
                raise
            fault, limit = _judged(path, error, plainly)
            limit = patience_s if isinstance(fault, StorageError) else 0.0 if believed else limit
        waited = time.monotonic() - begun
        of_storage = isinstance(fault, StorageError)
        if paused[limit] + pause > limit or (of_storage and waited > limit):
            raise fault.after(waited) if of_storage else fault
        if of_storage and not said:
            logger.warning("%s; trying again for %g s", fault, patience_s)
            said = True
        time.sleep(pause)
        paused[limit] += pause
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _judged(
    path: str | os.PathLike, error: Exception, plainly: Callable[[str | os.PathLike], None]
) -> tuple[ClipError | StorageError, float]:
    """Whose fault it is, and for how many seconds to try again."""
    if isinstance(error, ClipError) and error.reason in CERTAIN:
        return error, 0.0
    if isinstance(error, ClipError) and error.reason in _ABSENT:
        return error, ABSENT_S
    number = getattr(error, "number", getattr(error, "errno", None))
    hangs = isinstance(error, TimeoutError) and number is None
    if hangs and is_url(path) and remote.waits((inside(path) or [place(path)])[0]):
        return StorageError(path, _why(error)), PATIENCE_S
    if not isinstance(error, ClipError | StorageError) and not is_storage_fault(error):
        raise error
    if isinstance(error, ClipError) or hangs or number == errno.EIO:  # of a decoder's EIO the content may be the cause
        try:
            plainly(path)
        except OSError as found:
            if is_storage_fault(found):
                return StorageError(path, _why(found), found.errno), PATIENCE_S
        else:
            if hangs:
                return ClipError(path, "hangs", f"cannot be read ({error}); copy or export it again"), FIRST_PAUSE_S
            if number == errno.EIO:
                return ClipError(
                    path, "unreadable", "cannot be decoded (input/output error); export it again"
                ), DOUBTFUL_S
    if isinstance(error, ClipError):
        return error, FIRST_PAUSE_S
    return error if isinstance(error, StorageError) else StorageError(path, _why(error), number), PATIENCE_S


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or redacted(str(error))
