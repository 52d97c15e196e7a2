"""Which files a cache was made of, as they were when they were read, and what could not be encoded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError
from ...files import write_whole
from ...limits import shown
from .reading import AGAIN, read_json


class FileState(NamedTuple):
    """A file as it was read: bytes, when its content and when anything of it changed (ns), sha256 of the content."""

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str


@dataclass
class Origins:
    """files: by path as the manifest has it. dropped: {latent key: (path, reason)}."""

    files: dict[str, FileState] = field(default_factory=dict)
    dropped: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __or__(self, other: Origins) -> Origins:
        return Origins(self.files | other.files, self.dropped | other.dropped)


def write_origins(file: Path, origins: Origins, **more: Any) -> None:
    """As JSON, with whatever else is to be noted there."""
    table = {"files": origins.files, "dropped": origins.dropped, **more}
    write_whole(file, json.dumps(table))


def read_origins(file: Path) -> Origins:
    """Raises UserError, naming the file and the key, where it is not as it was written."""
    return origins_in(file, read_json(file))


def origins_in(file: Path, found: Any) -> Origins:
    """Of what was read of the file."""
    files, dropped = (_table(file, found, name) for name in ("files", "dropped"))
    for name, value in files.items():
        fits = isinstance(value, list) and [type(v) for v in value] == [int, int, int, str]
        if not fits:
            raise UserError(f"{file}: `files.{name}` is {shown(value)}, not size, times and hash: {AGAIN}")
    for name, value in dropped.items():
        if not (isinstance(value, list) and [type(v) for v in value] == [str, str]):
            raise UserError(f"{file}: `dropped.{name}` is {shown(value)}, not a path and a reason: {AGAIN}")
    return Origins({p: FileState(*v) for p, v in files.items()}, {k: (v[0], v[1]) for k, v in dropped.items()})


def _table(file: Path, found: Any, name: str) -> dict[str, Any]:
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, dict):
        raise UserError(f"{file}: `{name}` is {shown(value)}, not a table: {AGAIN}")
    return value
