"""Arrow tables in files that all processes of a machine map into memory: one copy, of which each process has a view.

A table lies in a folder of the user's below TMPDIR, under its key. It appears there by renaming, when it is whole. Each
process that uses it holds a lock on it, and the last one removes it; what killed processes left is removed by the next
that writes one.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import tempfile
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow

from ..errors import UserError
from .manifest.columns import Column

PART = ".part"
PAUSE_S = 0.05  # between two looks at a table that another process makes
_FIX = "set TMPDIR to a folder on a disk of this machine that has room"


class _Gone(UserError):
    """A table that was there a moment ago."""


class Shared:
    """The table in a file: `table[name]` is a column, numbers as an array and bytes as texts. Pickled, it is the path.

    Where the file's batches are several, an array of numbers is a copy.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        weakref.finalize(self, _let_go, path, _hold(path))
        with open(path, "rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._table = pyarrow.ipc.open_file(pyarrow.BufferReader(pyarrow.py_buffer(self._memory))).read_all()
        texts = [field.name for field in self._table.schema if field.type == pyarrow.binary()]
        self._texts = {name: Texts(self._table[name].chunks) for name in texts}

    def __reduce__(self):
        return Shared, (self.path,)

    def __len__(self) -> int:
        return self._table.num_rows

    def rest(self) -> None:
        """What was read of it counts no longer as memory of this process; the system has it still."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)

    def __getitem__(self, name: str) -> np.ndarray | Texts:
        if name in self._texts:
            return self._texts[name]
        column = self._table[name]
        if column.num_chunks != 1:
            return column.to_numpy()
        array = column.chunk(0).to_numpy().view(_Mapped)
        array.home = self, name
        return array


class _Mapped(np.ndarray):
    """A whole column; pickled, it is its place. What is made of it is pickled as any array is."""

    home: tuple[Shared, str] | None = None

    def __reduce__(self):
        return super().__reduce__() if self.home is None else (Shared.__getitem__, self.home)


class Texts(Column[str]):
    """A column of UTF-8 texts; lone surrogates (undecodable file names) are kept."""

    def __init__(self, chunks: Iterable[pyarrow.BinaryArray]) -> None:
        self._starts, self._chunks, count = [], [], 0
        for chunk in chunks:
            _, ends, letters = chunk.buffers()
            self._starts.append(count)
            self._chunks.append((memoryview(ends).cast("i")[: len(chunk) + 1], memoryview(letters or b"")))
            count += len(chunk)
        self._count = count

    def __len__(self) -> int:
        return self._count

    @property
    def lengths(self) -> np.ndarray:
        """int32 [N], in bytes"""
        return np.concatenate([np.diff(np.frombuffer(ends, np.int32)) for ends, _ in self._chunks])

    def _value(self, i: int) -> str:
        chunk = bisect_right(self._starts, i) - 1
        ends, letters = self._chunks[chunk]
        i -= self._starts[chunk]
        return str(letters[ends[i] : ends[i + 1]], "utf-8", "surrogatepass")


def share(key: str, schema: pyarrow.Schema, make: Callable[[], Iterable[pyarrow.RecordBatch]]) -> Shared:
    """The table of this key; where no process of this machine has it, what `make` gives, batch by batch.

    Processes that ask for one key at the same time wait for the one that makes it. Raises UserError where the folder
    cannot be written to, or is full.
    """
    folder = _folder()
    path, part = str(folder / f"{key}.arrow"), str(folder / f"{key}{PART}")
    for entry in os.scandir(folder):
        if entry.path != part and entry.name.endswith((".arrow", PART)):
            _remove_unused(entry.path)
    while True:
        if os.path.exists(path):
            with contextlib.suppress(_Gone):
                return Shared(path)
        with _refusals(folder):
            lock = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _locked(lock, folder) and os.fstat(lock).st_nlink and not os.path.exists(path):
                _write(part, schema, make())
                os.replace(part, path)
                fcntl.flock(lock, fcntl.LOCK_SH)  # kept until this process holds the table
                with contextlib.suppress(_Gone):
                    return Shared(path)
        finally:
            os.close(lock)
            _remove_unused(part)
        time.sleep(PAUSE_S)  # another process makes it


def _write(part: str, schema: pyarrow.Schema, batches: Iterable[pyarrow.RecordBatch]) -> None:
    """A fault of the file written is named as such; what making the batches raises is another matter."""
    folder = Path(part).parent
    with _refusals(folder):
        sink = pyarrow.OSFile(part, "wb")
    with sink:
        with _refusals(folder):
            writer = pyarrow.ipc.new_file(sink, schema)
        for batch in batches:
            with _refusals(folder):
                writer.write_batch(batch)
        with _refusals(folder):
            writer.close()
            sink.flush()


def share_arrays(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """These arrays [N], as columns of a shared table that is known by what they hold; those that are such, as they
    are."""
    shared = {name: column for name, column in columns.items() if getattr(column, "home", None) is not None}
    columns = {name: column for name, column in columns.items() if name not in shared}
    if not columns:
        return shared
    digest = blake2b(digest_size=16)
    for name, column in columns.items():
        digest.update(f"{name} {column.dtype} {len(column)} ".encode())
        digest.update(np.ascontiguousarray(column))
    batch = pyarrow.record_batch([pyarrow.array(column) for column in columns.values()], names=list(columns))
    table = share(digest.hexdigest(), batch.schema, lambda: [batch])
    return shared | {name: table[name] for name in columns}


@contextlib.contextmanager
def _refusals(folder: Path):
    """Names the folder in what the system refuses."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"{folder}: the table of clips cannot be kept there ({why}); {_FIX}") from error


def _locked(file: int, folder: Path) -> bool:
    """Whether this process is now the only one that has it."""
    with _refusals(folder):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _folder() -> Path:
    """This user's alone: what lies there is believed."""
    folder = Path(tempfile.gettempdir(), f"latentvid-{os.getuid()}")
    with _refusals(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"{folder} is not a folder of this user's alone: remove it, or {_FIX}")
    return folder


def _hold(path: str) -> int:
    """A lock on a table, which keeps it from being removed."""
    with _refusals(Path(path).parent):
        try:
            lock = os.open(path, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_SH)
        except FileNotFoundError:
            lock = None
    if lock is not None and os.fstat(lock).st_nlink:
        return lock
    if lock is not None:
        os.close(lock)
    raise _Gone(f"{path} is gone, which this run still needs: {_FIX}, where nothing else cleans up")


def _let_go(path: str, lock: int) -> None:
    os.close(lock)
    _remove_unused(path)


def _remove_unused(path: str) -> None:
    """Removes a table, or what was to become one, that no process holds."""
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_ino == os.stat(path).st_ino:
                os.unlink(path)
        finally:
            os.close(file)
