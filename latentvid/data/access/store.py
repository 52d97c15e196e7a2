"""A bounded cache on this machine's disk that its processes share: pieces of files by key, the least used go first.

fsspec's own caches on disk (`blockcache`, `filecache`, `simplecache`) have no bound, and their index is of one process.

    LATENTVID_CACHE     its folder; by default latentvid/pieces in XDG_CACHE_HOME or ~/.cache
    LATENTVID_CACHE_GB  how large it may become; by default 10

A piece appears by renaming, with a checksum, so a killed process leaves nothing that is believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from ...errors import UserError

logger = logging.getLogger(__name__)

USUAL_GB = 10.0
_TOUCHED_S = 60.0  # how fine "last used" is
_LEFT = 0.9  # of the bound, after a cleaning
_ABANDONED_S = 3600.0  # a piece that is still being written after so long is not


def key_of(*parts: object) -> str:
    return blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Store:
    """Pieces in `folder`, at most `most` bytes of them."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._warned = False

    def get(self, key: str, younger_than_s: float | None = None) -> bytes | None:
        """A piece, where there is a whole one, written not longer ago than that; it counts as used now."""
        path = self._path(key)
        try:
            with open(path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if younger_than_s is not None and time.time() - status.st_mtime > younger_than_s:
                    return None
                data = file.read(status.st_size)
                if younger_than_s is None and time.time() - status.st_mtime > _TOUCHED_S:
                    with contextlib.suppress(OSError):
                        os.utime(file.fileno())
        except OSError:
            return None
        if len(data) < 4 or zlib.crc32(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
            return None  # of a machine that lost its power
        return data[:-4]

    def put(self, key: str, data: bytes) -> None:
        """Keeps a piece. Where the disk does not take it, that is said once, and nothing is kept."""
        path = self._path(key)
        beside = path.with_name(f".{uuid.uuid4().hex}")
        try:
            self._make(path.parent)
            with open(beside, "wb", buffering=0) as file:
                whole = data + zlib.crc32(data).to_bytes(4, "little")
                if file.write(whole) != len(whole):
                    raise OSError(28, "No space left on device")
            known = path.exists()
            os.replace(beside, path)
            self._count(0 if known else len(whole))
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%s: what is fetched cannot be kept there (%s), so it is fetched each time: make room, or set "
                    "LATENTVID_CACHE to another folder",
                    self.folder,
                    error.strerror or error,
                )

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """One process of the machine at a time does what is done for this key."""
        try:
            self._make(self.folder / "locks")
            lock = os.open(self.folder / "locks" / key[:3], os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # nothing can be kept, which `put` says
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def used(self) -> int:
        """Bytes of all pieces, counted on the disk."""
        return sum(size for _, size, _ in self._pieces())

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)

    def _count(self, more: int) -> None:
        """Adds to the bytes in use, which a file holds; above the bound the least used pieces go."""
        lock = os.open(self.folder / "used", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            words = os.pread(lock, 8, 0)
            used = int.from_bytes(words, "little") + more if len(words) == 8 else self.used()
            if used > self.most:
                used = self._clean()
            os.pwrite(lock, used.to_bytes(8, "little"), 0)
        finally:
            os.close(lock)

    def _clean(self) -> int:
        pieces, limit = sorted(self._pieces()), int(self.most * _LEFT)
        used = sum(size for _, size, _ in pieces)
        for _, size, path in pieces:
            if used <= limit:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            used -= size
        return used

    def _pieces(self) -> list[tuple[float, int, str]]:
        """(last used, bytes, path) of each; what a killed process left half written is removed."""
        found = []
        for folder in os.scandir(self.folder):
            if len(folder.name) != 2 or not folder.is_dir():
                continue
            for entry in os.scandir(folder.path):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    if entry.name.startswith(".") and time.time() - status.st_mtime > _ABANDONED_S:
                        os.unlink(entry.path)
                    elif not entry.name.startswith("."):
                        found.append((status.st_mtime, status.st_size, entry.path))
        return found


def the_store() -> Store:
    """The one of this user, by the environment. Raises UserError for a size that is none."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.environ.get("LATENTVID_CACHE") or os.path.join(home, "latentvid", "pieces")
    return _store(os.path.abspath(folder), os.environ.get("LATENTVID_CACHE_GB") or str(USUAL_GB))


@lru_cache(maxsize=4)
def _store(folder: str, size: str) -> Store:
    try:
        most = float(size) * 1e9
    except ValueError:
        most = -1.0
    if not 0 < most < 1e18:
        raise UserError(f"LATENTVID_CACHE_GB={size}: give the size of the cache on disk in gigabytes, such as 10")
    return Store(Path(folder), int(most))
