"""What was made of each unit of work, kept as it is made: a curation that is killed goes on from there.

A file of lines, one a unit: {"key": ..., "made": ...}. A line that was cut off by a kill does not count. The key says
what the unit was made of and how, so what has changed since is made anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any


def key_of(*parts: Any) -> str:
    """Of what a unit is made of: anything that JSON holds."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()


class Journal:
    """Open inside `with`. Of a key that stands there twice the last line counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, int] = {}  # where in the file each key's line begins
        self._file: Any = None

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")
        self._file.seek(0)
        place = 0
        for line in self._file:
            key = _read(line).get("key")
            if isinstance(key, str):
                self._places[key] = place
            place += len(line)
        if place and not line.endswith(b"\n"):
            self._file.write(b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Any:
        self._file.seek(self._places[key])
        return _read(self._file.readline())["made"]

    def add(self, key: str, made: Any) -> None:
        """On the disk as far as the system has it when this returns: a kill of the process loses nothing."""
        self._file.seek(0, os.SEEK_END)
        self._places[key] = self._file.tell()
        self._file.write(json.dumps({"key": key, "made": made}, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def all_of(self, keys: Iterable[str]) -> Iterator[Any]:
        return (self[key] for key in keys)


def _read(line: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and "made" in found else {}
