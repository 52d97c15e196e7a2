"""Tar shards in WebDataset's layout: files of one sample follow each other and share the name before the first dot of
their last part (KEY.mp4, KEY.txt, KEY.json). Where each file lies is found once, from the headers, and remembered in
the machine's store; clips are then read by ranges, in any order.

Layout: https://github.com/webdataset/webdataset (README, "The WebDataset Format").
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ...errors import ClipError
from ...places import shown
from .remote import Status
from .store import key_of, the_store

_FORMAT = 1  # of what is remembered
_INDEXES = 32  # shards whose index a process holds
_TEXTS = (".txt", ".json")  # that are read with the index
_LARGEST_TEXT = 1 << 20  # bytes
_AHEAD = 1 << 16  # bytes that are read with a header

Open = Callable[[str], BinaryIO]


@dataclass(frozen=True)
class TarIndex:
    """members: {name: (first byte, bytes)}, in their order. texts: what short text files hold, by name."""

    members: dict[str, tuple[int, int]]
    texts: dict[str, bytes]

    def samples(self) -> Iterator[tuple[str, dict[str, str]]]:
        """(key, {ending with its dot, in lower case: name}) of each sample."""
        key, files = None, {}
        for name in self.members:
            folder, slash, last = name.rpartition("/")
            stem, dot, ending = last.partition(".")
            if not stem:  # a hidden file
                continue
            if (now := folder + slash + stem) != key:
                if files:
                    yield key, files
                key, files = now, {}
            files[(dot + ending).lower()] = name
        if files:
            yield key, files


_held: OrderedDict[str, TarIndex] = OrderedDict()


def index_of(path: str, status: os.stat_result | Status, open_raw: Open) -> TarIndex:
    """Of a shard as it is now. Raises ClipError ("unreadable") for what is no plain tar, OSError and StorageError."""
    key = key_of("tar", _FORMAT, path, status.st_size, status.st_mtime_ns)
    found = _held.pop(key, None)
    if found is None and (kept := the_store().get(key)) is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            found = _restored(json.loads(kept))
    if found is None:
        found = _read(path, open_raw)
        the_store().put(key, json.dumps(_plain(found)).encode())
    _held[key] = found
    while len(_held) > _INDEXES:
        with contextlib.suppress(KeyError):  # of another thread
            _held.popitem(last=False)
    return found


def member_of(path: str, name: str, status: os.stat_result | Status, open_raw: Open) -> tuple[int, int]:
    """(first byte, bytes) of a file in a shard. Raises FileNotFoundError, and as `index_of` does."""
    place = index_of(path, status, open_raw).members.get(name)
    if place is None:
        raise FileNotFoundError(errno.ENOENT, "No such file in the shard", f"{shown(path)}/{name}")
    return place


def member_status(path: str, name: str, status: os.stat_result | Status, open_raw: Open) -> Status:
    return Status(member_of(path, name, status, open_raw)[1], status.st_mtime_ns)


def _read(path: str, open_raw: Open) -> TarIndex:
    members, texts = {}, {}
    raw = open_raw(path)
    try:
        file = io.BufferedReader(raw, _AHEAD)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                tar.members = []  # or each is kept
                if not info.isreg() or info.issparse():
                    continue
                name = info.name.removeprefix("./")
                members[name] = info.offset_data, info.size
                if name.lower().endswith(_TEXTS) and info.size <= _LARGEST_TEXT:
                    after = file.tell()
                    file.seek(info.offset_data)
                    texts[name] = file.read(info.size)
                    file.seek(after)
            end = max((begin + size for begin, size in members.values()), default=0)
    except tarfile.TarError as error:
        if (fault := getattr(raw, "fault", None)) is not None:
            raise fault from None
        fix = "a shard is a .tar that is not compressed; pack it again"
        raise ClipError(path, "unreadable", f"is no whole tar ({error}): {fix}") from error
    if end > raw.seek(0, os.SEEK_END):
        raise ClipError(path, "truncated", "is cut short: copy or pack it again")
    return TarIndex(members, texts)


def _plain(index: TarIndex) -> dict[str, Any]:
    texts = {name: text.decode("latin-1") for name, text in index.texts.items()}
    return {"members": [[name, *place] for name, place in index.members.items()], "texts": texts}


def _restored(plain: dict[str, Any]) -> TarIndex:
    members = {name: (int(begin), int(size)) for name, begin, size in plain["members"]}
    return TarIndex(members, {name: text.encode("latin-1") for name, text in plain["texts"].items()})
