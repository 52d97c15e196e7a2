"""Objects behind URLs, through fsspec: what they are, and their bytes by ranges, in pieces that the machine keeps.

Options of a storage (an endpoint, a profile) are fsspec's own: FSSPEC_S3_ENDPOINT_URL=..., or files in
~/.config/fsspec. None is taken from a configuration of ours, so none stands in a run's folder.
"""

from __future__ import annotations

import json
import os
import random
import stat
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

import fsspec

from ...errors import StorageError
from ...places import place, shown
from .faults import gone, no_driver, root_of, translated
from .store import key_of, the_store

T = TypeVar("T")

PIECE = 1 << 18  # bytes
MOST_AT_ONCE = 32  # pieces of one request, where a file is read through
SMALL = 1 << 20  # bytes of a file that is asked for as a whole
ANSWER_S = 30.0  # a request that takes longer is made again
TRIES, PAUSE_S = 5, 0.1  # of a request, with growing pauses; `storage.patiently` waits for longer
BELIEVED_S = 600.0  # what an object was so long ago, it is
_KNOWN = 1 << 16  # objects of which a process remembers what they are
_ROOT_S = 30.0
_MANY = 16  # objects of a folder for which it is listed
_VERSION = ("ETag", "etag", "generation", "md5Hash", "Content-MD5", "Digest", "blob_id", "version_id")
_DATES = ("LastModified", "last_modified", "Last-Modified", "last_commit", "mtime", "created", "updated")
_LISTED = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory", "oci", "oss", "r2")  # by their keys, all at once


class Status(NamedTuple):
    """As os.stat_result has it, of an object. st_mtime_ns: a number that is another once the object is another."""

    st_size: int
    st_mtime_ns: int
    st_mode: int = stat.S_IFREG | 0o444

    @property
    def st_ctime_ns(self) -> int:
        return self.st_mtime_ns


_waiting: Counter[str] = Counter()  # URLs that this process asks for at the moment
_statuses: OrderedDict[str, tuple[float, Status]] = OrderedDict()
_roots: dict[str, tuple[float, bool]] = {}
_lock = threading.Lock()


def waits(url: str) -> bool:
    """Whether a request for this object is on its way: what hangs is the storage then, not a decoder."""
    return _waiting[url] > 0


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system (it remembers them by process) and the object's path in it."""
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise no_driver(url, error) from None


def asked(url: str, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """`call`, of a file system, tried a few times; raises FileNotFoundError and StorageError alone."""
    pause = PAUSE_S
    for left in reversed(range(TRIES)):
        with _lock:
            _waiting[url] += 1
        try:
            return call(*arguments, **named)
        except Exception as error:  # each storage's library has its own
            fault = translated(url, error, lambda: _root_is_there(url))
            if not left or not isinstance(fault, StorageError) or fault.fix:
                raise fault from None  # what the library said may hold credentials
        finally:
            with _lock:
                _waiting[url] -= 1
                if not _waiting[url]:
                    del _waiting[url]
        time.sleep(pause * (1 + random.random()))
        pause *= 2
    raise AssertionError


def _limit(fs: Any) -> dict[str, float]:
    """How long a request may take, for those file systems that can be told."""
    return {"timeout": ANSWER_S} if fs.async_impl else {}


def status(url: str, *, fresh: bool = False) -> Status:
    """What an object is. fresh: asked now; else what any process of this machine was told in the last minutes counts.

    Raises FileNotFoundError, and StorageError.
    """
    now, key = time.time(), key_of("status", url)
    if not fresh:
        with _lock:
            when, known = _statuses.get(url, (0.0, None))
        if known is not None and now - when < BELIEVED_S:
            return known
        if (kept := the_store().get(key, BELIEVED_S)) is not None:
            return _remember(url, Status(*json.loads(kept)), now)
    fs, path = filesystem(url)
    info = asked(url, fs.info, path, **_limit(fs))
    found = _status(url, info)
    the_store().put(key, json.dumps(found[:2]).encode())
    return _remember(url, found, now)


def ask_together(urls: Iterable[str]) -> None:
    """Asks for many objects now, those of one folder together where the storage lists its objects: `status` knows then.

    What is not there is not known after it either. Raises StorageError.
    """
    folders: dict[str, set[str]] = {}
    for url in urls:
        folders.setdefault(url.rpartition("/")[0], set()).add(url)
    alone = []
    for folder, wanted in folders.items():
        listed = len(wanted) >= _MANY and folder.partition("://")[0] in _LISTED
        alone += [] if listed and _list(folder, wanted) else wanted
    if alone:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(_ask, alone))


def _list(folder: str, wanted: Collection[str]) -> bool:
    fs, path = filesystem(folder)
    try:
        rows = asked(folder, fs.ls, path, detail=True, refresh=True, **_limit(fs))
    except FileNotFoundError:
        return False
    finally:
        fs.invalidate_cache(path)
    now = time.time()
    for row in rows:
        url = f"{folder}/{row['name'].rstrip('/').rpartition('/')[2]}"
        if url in wanted and row.get("type") == "file":
            _remember(url, _status(url, row), now)
    return True


def below(url: str) -> dict[str, dict[str, Any]]:
    """What fsspec says of each object below a folder, by its name in it; `status` knows them then. Empty where there is
    none. Raises StorageError."""
    fs, path = filesystem(url)
    try:
        rows = asked(url, fs.find, path, detail=True, refresh=True)
    except FileNotFoundError:
        return {}
    finally:
        fs.invalidate_cache()
    found, now = {}, time.time()
    for name, row in rows.items():
        inside = name.lstrip("/")[len(path.strip("/")) :].lstrip("/")
        if not inside or ".." in inside.split("/"):
            continue
        found[inside] = row
        if url.partition("://")[0] in _LISTED:
            _remember(f"{url.rstrip('/')}/{inside}", _status(url, row), now)
    return found


def _ask(url: str) -> None:
    with suppress(FileNotFoundError):
        status(url, fresh=True)


def forget(url: str) -> None:
    """After a fault that an object's change may explain."""
    with _lock:
        _statuses.pop(url, None)


def _remember(url: str, found: Status, now: float) -> Status:
    with _lock:
        _statuses[url] = now, found
        _statuses.move_to_end(url)
        while len(_statuses) > _KNOWN:
            _statuses.popitem(last=False)
    return found


def _status(url: str, info: dict[str, Any]) -> Status:
    if info.get("type") == "directory":
        return Status(0, 0, stat.S_IFDIR | 0o555)
    if info.get("size") is None:
        raise gone(url, "does not say how long its files are, so no part of one can be asked for")
    words = [str(info[name]) for name in _VERSION if info.get(name) is not None]
    words = words or [str(info[name]) for name in _DATES if info.get(name) is not None]
    digest = blake2b(json.dumps([info["size"], *words]).encode(), digest_size=7).digest()
    return Status(int(info["size"]), int.from_bytes(digest, "little"))


def _root_is_there(url: str) -> bool:
    """Whether the bucket is there, which a missing object does not say."""
    root = root_of(place(url))
    if root.partition("://")[0] in ("http", "https", "memory"):
        return True  # it answered
    when, found = _roots.get(root, (0.0, False))
    if time.monotonic() - when > _ROOT_S or not found:
        try:
            fs, path = filesystem(root)
            fs.info(path)
            found = True
        except FileNotFoundError:
            found = False
        except Exception as error:
            fault = translated(root, error, lambda: True)
            if isinstance(fault, StorageError) and fault.fix:
                raise fault from None
            found = True  # busy, or no right to look at it: the object's own answer counts
        _roots[root] = time.monotonic(), found
    return found


class RemotePieces:
    """The bytes of one object, by pieces: of the machine's store, else asked for.

    Pieces that follow each other are asked for together, the more of them the longer a file is read through.
    """

    def __init__(self, url: str) -> None:
        self.url, found = url, status(url)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(2, "No such object", shown(url))
        self.size, self._version = found.st_size, found.st_mtime_ns
        self._last, self._run = -2, 1
        self._held: OrderedDict[int, bytes] = OrderedDict()  # the last few

    def piece(self, number: int, through: int = 0) -> bytes:
        """Piece `number`, PIECE bytes from number * PIECE on, or what there is of it. through: a later one up to which
        all will be asked for."""
        found = self._held.get(number)
        if found is None:
            found = the_store().get(self._key(number))
            if found is None or len(found) != self._length(number):
                found = self._fetched(number, through)
            self._hold(number, found)
        self._last = number
        return found

    def _fetched(self, number: int, through: int) -> bytes:
        self._run = min(2 * self._run, MOST_AT_ONCE) if number == self._last + 1 else 1
        count = max(1, min(max(self._run, through - number + 1), -(-self.size // PIECE) - number))
        begin, end = number * PIECE, min(self.size, (number + count) * PIECE)
        data = read_range(self.url, begin, end, self.size)
        store, first = the_store(), data[:PIECE]
        for place_in in range(0, len(data), PIECE):
            piece, at = data[place_in : place_in + PIECE], number + place_in // PIECE
            store.put(self._key(at), piece)
            if place_in:
                self._hold(at, piece)
        return first

    def _hold(self, number: int, piece: bytes) -> None:
        self._held[number] = piece
        while len(self._held) > MOST_AT_ONCE + 1:
            self._held.popitem(last=False)

    def _length(self, number: int) -> int:
        return min(PIECE, self.size - number * PIECE)

    def _key(self, number: int) -> str:
        return key_of(self.url, self.size, self._version, number)


def read_range(url: str, begin: int, end: int, size: int) -> bytes:
    """Bytes [begin, end) of an object of `size` bytes. Raises FileNotFoundError and StorageError."""
    if end <= begin:
        return b""
    fs, path = filesystem(url)

    def read() -> bytes:
        data = fs.cat_file(path, start=begin, end=end, **_limit(fs))
        if len(data) == size != end - begin:  # of a server that knows no ranges
            data = data[begin:end]
        if len(data) != end - begin:
            forget(url)
            raise ConnectionError(f"{len(data)} bytes came instead of {end - begin}")
        return data

    return asked(url, read)


def write_object(url: str, local: str | os.PathLike) -> None:
    """Copies a file of this machine there; it appears whole, as these storages have it. Raises StorageError."""
    fs, path = filesystem(url)
    fs_name = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    if fs_name in ("http", "https"):
        raise gone(url, "can only be read")

    def write() -> None:
        fs.put_file(os.fspath(local), path)

    asked(url, write)
    forget(url)
