"""Cells of Parquet files, as Hugging Face `datasets` writes columns of videos and images: structs of `bytes` and
`path`, or bytes alone.

Parquet is compressed by pages and read by row groups: the first cell that is asked for brings those of its row group
into the machine's store, one after the other, from where the others are read.
"""

from __future__ import annotations

import errno
import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from ...errors import ClipError
from ...places import shown
from .remote import PIECE, Status
from .store import key_of, the_store

_FOOTERS = 32  # files whose groups a process remembers
_NAME = re.compile(r"(.+)/(\d{1,12})(\.\w+)?", re.DOTALL)  # COLUMN/ROW.ENDING

Open = Callable[[str], BinaryIO]


@dataclass(frozen=True)
class _Groups:
    """starts: the first row of each row group, and the number of all rows. bytes: of each group, as it is stored."""

    starts: tuple[int, ...]
    bytes: tuple[int, ...]


_held: OrderedDict[str, _Groups] = OrderedDict()


def cell_status(path: str, name: str, status: os.stat_result | Status, open_raw: Open) -> Status:
    """Of a cell, with its table's size. Raises FileNotFoundError where there is no such row."""
    _place(path, name, status, open_raw)
    return Status(status.st_size, status.st_mtime_ns)


class CellPieces:
    """The bytes of one cell by pieces. Raises ClipError ("empty-file") where there are none, ("unreadable") of what is
    no Parquet, FileNotFoundError, StorageError."""

    def __init__(self, path: str, name: str, status: os.stat_result | Status, open_raw: Open) -> None:
        self.path, self.name = f"{path}/{name}", name
        self._container, self._open, self._status = path, open_raw, status
        self._column, self._row, self._group, self._first = _place(path, name, status, open_raw)
        self._own: bytes | None = None  # where the store does not keep it
        size = self._kept_size()
        if size is None:
            with the_store().alone(self._key(self._first, "group")):
                size = self._kept_size()  # another process was first
                if size is None:
                    size = self._bring()
        if not size:
            raise ClipError(self.path, "empty-file", "is empty (0 bytes): write that row again")
        self.size = size

    def piece(self, number: int, through: int = 0) -> bytes:
        if self._own is None:
            found = the_store().get(self._key(self._row, number))
            if found is not None:
                return found
            self._bring()
        return self._own[number * PIECE : (number + 1) * PIECE]

    def _key(self, row: int, what: object) -> str:
        status = self._status
        return key_of("cell", self._container, status.st_size, status.st_mtime_ns, self._column, row, what)

    def _kept_size(self) -> int | None:
        kept = the_store().get(self._key(self._row, "size"))
        return None if kept is None else int(kept)

    def _bring(self) -> int:
        """Reads the row group, as far as the row where all of it would fill the store; bytes of this cell."""
        store = the_store()
        groups = _groups(self._container, self._status, self._open)
        whole = groups.bytes[self._group] < store.most / 4
        for row, data in enumerate(self._cells(), self._first):
            if row == self._row:
                self._own = data
            if whole or row == self._row:
                for number in range(-(-len(data) // PIECE)):
                    store.put(self._key(row, number), data[number * PIECE : (number + 1) * PIECE])
                store.put(self._key(row, "size"), str(len(data)).encode())
            if row == self._row and not whole:
                break
        return len(self._own or b"")

    def _cells(self) -> Iterator[bytes]:
        raw = self._open(self._container)
        with _parquet(self._container, raw) as file:
            rows = file.iter_batches(1, row_groups=[self._group], columns=[self._column], use_threads=False)
            for batch in rows:
                value: Any = batch.column(0)[0].as_py()
                value = value.get("bytes") if isinstance(value, dict) else value
                yield value if isinstance(value, bytes) else b""


def _place(path: str, name: str, status: os.stat_result | Status, open_raw: Open) -> tuple[str, int, int, int]:
    """(column, row, its row group, that one's first row)"""
    found = _NAME.fullmatch(name)
    groups = _groups(path, status, open_raw)
    if found is None or int(found[2]) >= groups.starts[-1]:
        raise FileNotFoundError(errno.ENOENT, "No such row in the table", f"{shown(path)}/{name}")
    row = int(found[2])
    group = bisect_right(groups.starts, row) - 1
    return found[1], row, group, groups.starts[group]


def _groups(path: str, status: os.stat_result | Status, open_raw: Open) -> _Groups:
    key = key_of(path, status.st_size, status.st_mtime_ns)
    found = _held.get(key)
    if found is None:
        with _parquet(path, open_raw(path)) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            starts = accumulate((group.num_rows for group in groups), initial=0)
            found = _Groups(tuple(starts), tuple(group.total_byte_size for group in groups))
        _held[key] = found
        while len(_held) > _FOOTERS:
            _held.popitem(last=False)
    return found


class _parquet:
    """pyarrow's file, read as it is used; a storage's fault is that, any other is the file's."""

    def __init__(self, path: str, raw: BinaryIO) -> None:
        self._path, self._raw = path, raw

    def __enter__(self) -> pyarrow.parquet.ParquetFile:
        try:
            self._file = pyarrow.parquet.ParquetFile(self._raw, pre_buffer=False, buffer_size=PIECE)
        except Exception as error:
            self._judge(error)
        return self._file

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._file.close()
        if error is not None and not isinstance(error, GeneratorExit):
            self._judge(error)

    def _judge(self, error: BaseException) -> None:
        if (fault := getattr(self._raw, "fault", None)) is not None:
            raise fault from None
        if isinstance(error, pyarrow.ArrowException | OSError | KeyError):
            why = f"cannot be read as Parquet ({error!s:.200}): write it again"
            raise ClipError(self._path, "unreadable", why) from error
        raise error
