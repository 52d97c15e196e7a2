"""A manifest's rows: columns of a table that the processes of a machine share, instead of a million objects."""

from __future__ import annotations

import math
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import pyarrow

from ...places import join
from ...places import shown as withheld
from ..shared import Shared, share, share_arrays
from .captions import joined, separate
from .columns import Column, Made


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip or image: absolute path, caption, number of frames, frames per second (0: image), size in pixels.

    caption: several, where it has more than one. start, end: of the segment of the file that it is, in seconds; frames
    and fps are the whole file's.
    """

    path: str
    caption: str | tuple[str, ...]
    frames: int
    fps: float
    height: int
    width: int
    start: float = 0.0
    end: float = math.inf

    @property
    def is_whole(self) -> bool:
        return (self.start, self.end) == (0.0, math.inf)


NUMBERS = ("source", "at", "frames", "fps", "height", "width", "row")
SEGMENT = ("start", "end")
_SCHEMA = pyarrow.schema(
    {
        "path": pyarrow.binary(),
        "caption": pyarrow.binary(),
        "frames": pyarrow.int32(),
        "fps": pyarrow.float64(),
        "height": pyarrow.int32(),
        "width": pyarrow.int32(),
        "row": pyarrow.int32(),
        "segment": pyarrow.binary(),
        "fault": pyarrow.binary(),
    }
)
BATCH_ROWS, BATCH_LETTERS = 1 << 14, 1 << 26  # that are in memory at once while a table is read


class Row(NamedTuple):
    """A row as it is read. A frames, height or width of 0 and an fps of NaN are not known yet.

    caption: one, several, or several `joined`. start, end: of its segment, in seconds. fault: why it cannot be used, if
    so; `path` is then what is said of it.
    """

    path: str
    caption: str | tuple[str, ...] = ""
    frames: int = 0
    fps: float = math.nan
    height: int = 0
    width: int = 0
    row: int = 0
    fault: str = ""
    start: float = 0.0
    end: float = math.inf


@dataclass(frozen=True, eq=False, repr=False)
class Samples(Column[Sample]):
    """Samples of one or several manifests; sample i came from manifest `source[i]`, whose folder is `folders[source]`.

    tables: of each manifest, the shared table of its rows, of which sample i is row `at[i]`: there are its path
    (relative to the folder, or absolute) and caption. source: uint16 [N]. at, frames, height, width: int32 [N].
    fps: float64 [N]. row: int32 [N], in the manifest; 0 where there is none. start, end: float64 [N], of the segment of
    the file that it is, in seconds; None where each sample is a whole file.
    """

    folders: tuple[str, ...]
    tables: tuple[Shared, ...]
    source: np.ndarray
    at: np.ndarray
    frames: np.ndarray
    fps: np.ndarray
    height: np.ndarray
    width: np.ndarray
    row: np.ndarray
    start: np.ndarray | None = None
    end: np.ndarray | None = None

    @classmethod
    def of(cls, folder: str, rows: Callable[[], Iterable[Row]], key: str | None = None) -> tuple[Samples, Dropped]:
        """The usable rows, and the others. key: of the table that holds them; None where no other process has it."""
        table = share(key or uuid.uuid4().hex, _SCHEMA, lambda: _batches(rows()))
        pyarrow.default_memory_pool().release_unused()
        fault, numbers = table["fault"], {name: np.asarray(table[name]) for name in NUMBERS[2:]}
        usable = fault.lengths == 0
        dropped = Dropped((table["path"][i], fault[i]) for i in np.flatnonzero(~usable).tolist())
        at = np.flatnonzero(usable).astype(np.int32)
        source = np.zeros(len(at), np.uint16)
        numbers = {name: n[usable] for name, n in numbers.items()} | _segments(table["segment"], at)
        return cls((folder,), (table,), source, at, **numbers), dropped

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0] + [len(part.folders) for part in parts])
        return cls(
            tuple(folder for part in parts for folder in part.folders),
            tuple(table for part in parts for table in part.tables),
            np.concatenate([part.source + np.uint16(start) for part, start in zip(parts, starts, strict=False)]),
            *(np.concatenate([getattr(p, name) for p in parts]) for name in NUMBERS[1:]),
            **_joined_segments(parts),
        )

    def where(self, mask: np.ndarray) -> Samples:
        """The samples where the bool [N] mask is true."""
        return self if mask.all() else replace(self, **{name: n[mask] for name, n in self._numbers().items()})

    def shared(self) -> Samples:
        """The same, with numbers that all processes of the machine share as well."""
        return replace(self, **share_arrays(self._numbers()))

    def _numbers(self) -> dict[str, np.ndarray]:
        found = {name: getattr(self, name) for name in (*NUMBERS, *SEGMENT)}
        return {name: column for name, column in found.items() if column is not None}

    def with_captions(self, changed: Mapping[int, str]) -> Samples:
        """The same, of one manifest, but for the captions of some, `joined`."""
        key = blake2b(self.tables[0].path.encode() + self.at.tobytes(), digest_size=16)
        for i, caption in changed.items():
            key.update(f"{i} {len(caption)} {caption}".encode("utf-8", "surrogatepass"))

        def rows() -> Iterable[Row]:
            return map(Row, self.paths, (changed.get(i, text) for i, text in enumerate(self.texts)))

        table = Samples.of(self.folders[0], rows, key.hexdigest())[0].tables
        return replace(self, tables=table, at=np.arange(len(self), dtype=np.int32))

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def paths(self) -> Column[str]:
        """As the manifests have them."""
        return self._texts("path")

    @property
    def texts(self) -> Column[str]:
        """The captions of each, `joined`."""
        return self._texts("caption")

    def _texts(self, name: str) -> Column[str]:
        texts = [table[name] for table in self.tables]
        return Made(len(self), lambda i: texts[self.source[i]][self.at[i]])

    def path(self, i: int) -> str:
        source = self.source[i]
        return join(self.folders[source], self.tables[source]["path"][self.at[i]])

    def captions(self, i: int) -> list[str]:
        """All that sample i has, one at least."""
        return separate(self.tables[self.source[i]]["caption"][self.at[i]])

    def rest(self) -> None:
        """After a pass, or a pack: what was read counts no longer as memory of this process."""
        numbers = {home[0] for column in self._numbers().values() if (home := getattr(column, "home", None))}
        for table in {*self.tables, *numbers}:
            table.rest()

    def name(self, i: int) -> str:
        """The path and, where there is one, the row: where to mend it."""
        return withheld(self.path(i)) + (f", row {self.row[i]}" if self.row[i] else "")

    def segment(self, i: int) -> tuple[float, float]:
        """(start, end) in seconds; (0, inf) of a whole file."""
        return (0.0, math.inf) if self.start is None else (float(self.start[i]), float(self.end[i]))

    def segment_name(self, i: int) -> str:
        """The segment as it follows a path; nothing of a whole file."""
        start, end = self.segment(i)
        return "" if (start, end) == (0.0, math.inf) else f", {start:g} to {end:g} s"

    @property
    def is_image(self) -> np.ndarray:
        """bool [N]"""
        return (self.fps == 0) & (self.frames == 1)

    def _value(self, i: int) -> Sample:
        frames, fps, height, width = (c[i].item() for c in (self.frames, self.fps, self.height, self.width))
        caption, *more = self.captions(i)
        return Sample(self.path(i), (caption, *more) if more else caption, frames, fps, height, width, *self.segment(i))


class Dropped(Column[tuple[str, str]]):
    """(path or line, reason) of what cannot be used."""

    def __init__(self, rows: Iterable[tuple[str, str]] = ()) -> None:
        self._letters, self._ends, self._codes = bytearray(), array("q"), array("H")
        self._reasons: dict[str, int] = {}  # the code of each
        for path, reason in rows:
            self.add(path, reason)

    def add(self, path: str, reason: str) -> None:
        self._letters += withheld(path).encode("utf-8", "surrogatepass")
        self._ends.append(len(self._letters))
        self._codes.append(self._reasons.setdefault(reason, len(self._reasons)))

    def __len__(self) -> int:
        return len(self._codes)

    def _value(self, i: int) -> tuple[str, str]:
        path = self._letters[self._ends[i - 1] if i else 0 : self._ends[i]]
        return path.decode("utf-8", "surrogatepass"), list(self._reasons)[self._codes[i]]


def dropped_by_reason(dropped: Iterable[tuple[str, str]], examples: int = 3) -> list[str]:
    """A line for each reason of (path, reason), the commonest first: how many, and the first few."""
    counts: dict[str, int] = {}
    first: dict[str, list[str]] = {}
    for path, reason in dropped:
        counts[reason] = counts.get(reason, 0) + 1
        if counts[reason] <= examples:
            first.setdefault(reason, []).append(shown(path))
    lines = []
    for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
        more = ", ..." if count > examples else ""
        lines.append(f"  dropped {count} ({reason}): {', '.join(first.get(reason, []))}{more}")
    return lines


def shown(path: str) -> str:
    """A path in one line that any terminal takes."""
    text = path.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _batches(rows: Iterable[Row]) -> Iterator[pyarrow.RecordBatch]:
    batch, letters = [], 0
    for row in rows:
        texts = (text.encode("utf-8", "surrogatepass") for text in (row.path, joined(row.caption), row.fault))
        path, caption, fault = texts
        segment = b"" if (row.start, row.end) == (0.0, math.inf) else f"{row.start!r} {row.end!r}".encode()
        batch.append((path, caption, row.frames, row.fps, row.height, row.width, row.row, segment, fault))
        letters += len(path) + len(caption)
        if len(batch) == BATCH_ROWS or letters > BATCH_LETTERS:
            yield _batch(batch)
            batch, letters = [], 0
    yield _batch(batch)


def _batch(rows: list[tuple]) -> pyarrow.RecordBatch:
    columns = zip(*rows, strict=True) if rows else ((),) * len(_SCHEMA)
    arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pyarrow.record_batch(arrays, schema=_SCHEMA)


def _segments(texts: Column[str], at: np.ndarray) -> dict[str, np.ndarray]:
    """start and end of the rows `at`, where some of them are segments."""
    some = np.flatnonzero(texts.lengths[at])
    if not len(some):
        return {}
    found = {"start": np.zeros(len(at)), "end": np.full(len(at), math.inf)}
    for i in some.tolist():
        found["start"][i], found["end"][i] = map(float, texts[at[i]].split())
    return found


def _joined_segments(parts: Sequence[Samples]) -> dict[str, np.ndarray]:
    if all(part.start is None for part in parts):
        return {}

    def column(part: Samples, name: str, whole: float) -> np.ndarray:
        found = getattr(part, name)
        return np.full(len(part), whole) if found is None else found

    whole = {"start": 0.0, "end": math.inf}
    return {name: np.concatenate([column(part, name, value) for part in parts]) for name, value in whole.items()}
