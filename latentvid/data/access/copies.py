"""Copies of files and folders from a URL to this machine, and back: checkpoints, latent caches, weights, outputs.

A copy that was stopped goes on where it was. What says that a folder is whole (a checkpoint's manifest, a cache's
index, a pipeline's model_index) is copied last, so nobody reads half a folder as a whole one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ...errors import StorageError, UserError
from ...files import written_whole
from ...limits import PATIENCE_S
from ...places import has_credentials, is_url, join, name_of, place, shown
from ...progress import phase
from ...words import counted
from ..storage import patiently
from . import remote

LAST = ("manifest.json", "index.json", "model_index.json")  # of each folder
CHUNK = 1 << 23  # bytes of a request
_DATES = ("LastModified", "last_modified", "updated", "mtime", "created")


class _File(NamedTuple):
    """changed: in seconds since 1970; None where nothing says."""

    size: int
    changed: float | None

    def is_as_new_as(self, other: _File) -> bool:
        known = self.changed is not None and other.changed is not None
        return known and self.size == other.size and self.changed >= other.changed


@dataclass(frozen=True)
class Copied:
    """Files and bytes that were copied, and files that were there already."""

    files: int
    bytes: int
    there: int

    def __str__(self) -> str:
        there = f"; {self.there} were there" if self.there else ""
        return f"{counted(self.files, 'file')}, {self.bytes:,} bytes{there}"


def copy(source: str | os.PathLike, target: str | os.PathLike, patience_s: float = PATIENCE_S) -> Copied:
    """A file, or all that a folder holds, one of the two being a URL. Files of the same size that are not older than
    their source are left as they are; nothing is removed.

    Raises UserError where there is no such source, or neither or both are URLs; StorageError where the storage does not
    answer for `patience_s`.
    """
    source, target = place(source), place(target)
    if is_url(source) == is_url(target):
        which = "both are URLs" if is_url(source) else "neither is a URL"
        raise UserError(f"copying {shown(source)} to {shown(target)}: {which}, and one of the two must be")
    for each in (source, target):
        if has_credentials(each) and not each.startswith("http"):
            raise UserError(f"{shown(each)}: leave user and password out: set them in the environment (docs/data.md)")
    far = is_url(source)
    files = patiently(partial(_far_files if far else _near_files, source), source, patience_s)
    if files is None:  # a file
        name = name_of(source)
        into = target.endswith("/") or (far and os.path.isdir(target))
        pairs = {name: (source, join(target.rstrip("/"), name) if into else target)}
        files = {name: patiently(partial(_state, source), source, patience_s)}
    else:
        pairs = {name: (join(source.rstrip("/"), name), join(target.rstrip("/"), name)) for name in files}
    if not files or None in files.values():
        raise UserError(f"there is nothing to copy at {shown(source)}: correct the path")
    return _all(files, pairs, far, patience_s)


def _all(files: dict[str, _File], pairs: dict[str, tuple[str, str]], far: bool, patience_s: float) -> Copied:
    count, total, there = 0, 0, 0
    went: list[PurePosixPath] = []
    with phase("copying files", len(files)) as advance:
        for name in sorted(files, key=lambda name: (PurePosixPath(name).name in LAST, name)):
            (begin, end), file = pairs[name], files[name]
            folder = PurePosixPath(name).parent
            if PurePosixPath(name).name in LAST and any(folder in each.parents for each in went):
                advance()  # it would say that a folder is whole which is not
                continue
            have = patiently(partial(_state, end), end, patience_s)
            if have is not None and have.is_as_new_as(file):
                there += 1
                advance()
                continue
            make: Callable[[], None] = partial(_fetch, begin, end, file.size) if far else partial(_send, begin, end)
            try:
                patiently(make, begin if far else end, patience_s)
            except FileNotFoundError:
                if far or os.path.exists(begin):
                    raise
                went.append(PurePosixPath(name))  # meanwhile: a run removes its older checkpoints
            else:
                count, total = count + 1, total + file.size
            advance()
    return Copied(count, total, there)


def _near_files(folder: str) -> dict[str, _File] | None:
    """Of this machine's folder, by name in it; None of a file. Hidden ones are left out."""
    if not os.path.isdir(folder):
        return None
    return {name: found for name in _names(folder) if (found := _state(os.path.join(folder, name))) is not None}


def _names(folder: str) -> Iterator[str]:
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


def _far_files(url: str) -> dict[str, _File] | None:
    fs, path = remote.filesystem(url)
    try:
        info = remote.asked(url, fs.info, path)
    except FileNotFoundError:
        return {}
    if info.get("type") != "directory":
        return None
    return {
        name: _File(int(each["size"]), _date(each))
        for name, each in remote.below(url).items()
        if not any(part.startswith(".") for part in PurePosixPath(name).parts)
    }


def _state(path: str) -> _File | None:
    """None where there is no such file."""
    if not is_url(path):
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return _File(found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None
    fs, there = remote.filesystem(path)
    try:
        info = remote.asked(path, fs.info, there)
    except FileNotFoundError:
        return None
    return None if info.get("type") == "directory" or info.get("size") is None else _File(info["size"], _date(info))


def _date(info: dict[str, Any]) -> float | None:
    found = next((info[name] for name in _DATES if info.get(name) is not None), None)
    if isinstance(found, str):
        try:
            found = datetime.fromisoformat(found)
        except ValueError:
            return None
    return found.timestamp() if isinstance(found, datetime) else float(found) if found is not None else None


def _fetch(url: str, target: str, size: int) -> None:
    try:
        with written_whole(target) as beside, open(beside, "wb") as file:
            for begin in range(0, size, CHUNK):
                file.write(remote.read_range(url, begin, min(begin + CHUNK, size), size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename == shown(url):
            raise StorageError(url, "it went away while it was copied") from None
        raise UserError(f"{target} cannot be written ({error.strerror or error}): make room, or mend it") from error


def _send(path: str, url: str) -> None:
    remote.write_object(url, path)
