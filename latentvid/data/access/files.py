"""The one way to open what a manifest names, and to learn its size: `status` and `opened`.

A name is a path, a URL, or either of these followed by what lies inside: SHARD.tar/MEMBER, TABLE.parquet/COLUMN/ROW.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import BinaryIO, Protocol

from ...errors import StorageError
from ...places import is_url, name_of, place
from . import remote
from .cells import CellPieces, cell_status
from .remote import PIECE, SMALL, RemotePieces, Status
from .tars import TarIndex, index_of, member_of, member_status

_INSIDE = re.compile(r"(.+?\.(tar|parquet))/(.+)", re.DOTALL | re.IGNORECASE)


class Pieces(Protocol):
    """Bytes that are had by pieces of PIECE bytes."""

    size: int

    def piece(self, number: int, through: int = 0) -> bytes: ...


class LocalPieces:
    """Of a file of this machine."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.size = os.fstat(self._file.fileno()).st_size
        self._held = (-1, b"")

    def piece(self, number: int, through: int = 0) -> bytes:
        if self._held[0] != number:
            self._held = number, os.pread(self._file.fileno(), PIECE, number * PIECE)
        return self._held[1]

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class PieceFile(io.RawIOBase):
    """A file to read and seek in, of the bytes [begin, begin + size) of pieces.

    fault: what the storage raised last. A decoder may take a failed read for the file's end, so whoever hands this
    file to one asks here before believing it. holes: [begin, end) that are given as zeros and never fetched.
    """

    def __init__(
        self, name: str, pieces: Pieces, begin: int = 0, size: int | None = None, holes: Sequence[tuple[int, int]] = ()
    ) -> None:
        self.name, self.fault = name, None
        self._pieces, self._begin, self._holes = pieces, begin, holes
        self._size = pieces.size - begin if size is None else size
        self._through = (begin + self._size - 1) // PIECE if self._size <= SMALL else 0
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(22, "Invalid argument")
        self._at = base + offset
        return self._at

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        done = 0
        while done < count:
            done += self._some(view[done:count])
        return done

    def _some(self, view: memoryview) -> int:
        """Fills some of `view`, from where the file is read."""
        for begin, end in self._holes:
            if begin <= self._at < end:
                count = min(len(view), end - self._at)
                view[:count] = bytes(count)
                self._at += count
                return count
            if self._at < begin < self._at + len(view):
                view = view[: begin - self._at]
        number, first = divmod(self._begin + self._at, PIECE)
        try:
            piece = self._pieces.piece(number, self._through)
        except Exception as error:
            self.fault = error
            raise
        found = piece[first : first + len(view)]
        if not found:
            raise OSError(5, "Input/output error")  # shorter than it was
        view[: len(found)] = found
        self._at += len(found)
        return len(found)


def inside(path: str | os.PathLike) -> tuple[str, str, str] | None:
    """(container, its kind, what lies inside) of a name that goes on behind a tar shard or a Parquet file."""
    text = place(path)
    if ".tar/" not in text and ".parquet/" not in text:
        return None
    found = _INSIDE.fullmatch(text)
    if found is None or (not is_url(found[1]) and os.path.isdir(found[1])):
        return None
    return found[1], found[2].lower(), found[3]


def is_plain(path: str | os.PathLike) -> bool:
    """Whether it is a file of this machine that the system opens by its name."""
    return not is_url(path) and inside(path) is None


def status(path: str | os.PathLike, *, fresh: bool = False) -> os.stat_result | Status:
    """Size, date and mode. Raises OSError, FileNotFoundError among them, and StorageError. fresh: see `remote.status`.

    A cell's size is not known before it is read: its table's stands for it.
    """
    if (parts := inside(path)) is not None:
        of = status(parts[0], fresh=fresh)
        return (member_status if parts[1] == "tar" else cell_status)(*parts[::2], of, _raw)
    return remote.status(place(path), fresh=fresh) if is_url(path) else os.stat(place(path))


def ask_together(paths: Iterable[str]) -> None:
    """What objects these are is asked now, of many at a time; `status` knows then. Raises StorageError."""
    remote.ask_together({parts[0] if (parts := inside(path)) else path for path in paths if is_url(path)})


def exists(path: str | os.PathLike) -> bool:
    """Raises StorageError alone."""
    try:
        status(path)
    except StorageError:
        raise
    except (OSError, ValueError):  # ValueError: a path with a null character
        return False
    return True


def opened(path: str | os.PathLike) -> BinaryIO:
    """A file to read and seek in. Raises as `status` does, and while it is read."""
    if is_plain(path):
        return open(place(path), "rb")
    return io.BufferedReader(by_pieces(path), buffer_size=1 << 16)


def tar_index(path: str) -> TarIndex:
    """What lies in a shard. Raises ClipError, OSError and StorageError."""
    return index_of(path, status(path), _raw)


def by_pieces(path: str | os.PathLike, holes: Sequence[tuple[int, int]] = ()) -> PieceFile:
    """The same as a `PieceFile`."""
    if (parts := inside(path)) is None:
        return _raw(place(path), holes)
    container, kind, name = parts
    if kind == "tar":
        begin, size = member_of(container, name, status(container), _raw)
        return PieceFile(name_of(name), _pieces(container), begin, size, holes)
    return PieceFile(name_of(name), CellPieces(container, name, status(container), _raw), holes=holes)


def _raw(path: str, holes: Sequence[tuple[int, int]] = ()) -> PieceFile:
    return PieceFile(name_of(path), _pieces(path), holes=holes)


def _pieces(path: str) -> Pieces:
    return RemotePieces(path) if is_url(path) else LocalPieces(path)
