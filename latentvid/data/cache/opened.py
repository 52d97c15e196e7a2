"""Files that are read again and again at places of theirs: each stays open, the last few of a process.

They are not mapped into memory: there a fault of the storage would kill the process (SIGBUS) instead of being waited
for.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path

MOST = 128  # files of a process that stay open; `ulimit -n` is 1,024 on many machines
TOGETHER = 512  # buffers of one system call, which takes 1,024 at most

_open: deque[weakref.ref[PlacesOf]] = deque()


class PlacesOf:
    """Reads places of a file, which it opens at the first reading and opens anew after a fault (`again`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: _File | None = None

    def read(self, places: Sequence[tuple[int, int]]) -> list[bytearray]:
        """The bytes from each first place to the second; what follows each other in the file is one system call."""
        file = self._file or self._opened()
        found = [bytearray(end - start) for start, end in places]
        begin = 0
        while begin < len(places):
            stop = begin + 1
            while stop < len(places) and stop - begin < TOGETHER and places[stop][0] == places[stop - 1][1]:
                stop += 1
            if file.into(found[begin:stop], places[begin][0]) < places[stop - 1][1] - places[begin][0]:
                return [file.slowly(start, end - start) for start, end in places]
            begin = stop
        return found

    def again(self) -> None:
        """A fault is over only for a file that is opened anew."""
        self._file = None

    def _opened(self) -> _File:
        self._file = file = _File(self.path)
        _open.append(weakref.ref(self))
        while len(_open) > MOST:
            other = _open.popleft()()
            if other is not None:
                other.again()
        return file


class _File:
    """Closed when nothing refers to it, so never under the hands of another thread."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def into(self, buffers: list[bytearray], start: int) -> int:
        return os.preadv(self._file.fileno(), buffers, start)

    def slowly(self, start: int, length: int) -> bytearray:
        """As far as the file goes, where the system gave less at once."""
        found = bytearray()
        while len(found) < length and (more := os.pread(self._file.fileno(), length - len(found), start + len(found))):
            found += more
        return found
