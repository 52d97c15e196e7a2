"""Manifests: which clips and images to train on, with their captions.

A manifest is a table with one row per clip, as JSON lines (.jsonl), CSV (.csv), TSV (.tsv) or Parquet (.parquet), or
holds the clips themselves (`shards`). It may be a URL; `{000..063}`, * and ? in its name stand for several files.
Columns `path` (relative to the manifest's folder, or absolute; or `file_name`) and `caption` (or `text`; one, or a list
of several) are required, or others by name; `start` and `end` (in seconds, either may be missing) say that a row is a
segment of its file; `frames`, `fps`, `height`, `width`, of the whole file, are found by opening it where they are
missing; any other column is kept where it is asked for.

    python -m latentvid.data.manifest FOLDER OUT.jsonl     # makes one from a folder of clips with NAME.txt beside each
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
import pyarrow

from ...files import local, written_whole
from ...limits import range_of
from ...places import absolute, has_credentials, is_url, join, name_of, parent, shown
from ...words import counted
from ..access.files import opened, status
from ..storage import patiently
from .captions import each_of, fault_of, is_garbage, joined, one_line
from .facts import FACTS, UNKNOWN, Memory, look_at_files
from .fault import ManifestError
from .samples import SEGMENT, Dropped, Row, Sample, Samples, dropped_by_reason
from .scan import find_captioned
from .tables import (
    ENDINGS,
    MAKE_ONE,
    READABLE,
    READERS,
    WRITERS,
    Reader,
    check_is_file,
    files_of,
    holds_clips,
    no_column,
)

FORMAT = 2  # of the shared tables: raise it when the same manifest becomes another one
LARGEST_SIDE = 2**16  # pixels


@dataclass(frozen=True)
class Columns:
    """Which columns of a manifest hold the file and its caption; None: by their usual names. facts: what the table
    says of frames, rate and size is of these files; else each is looked at."""

    path: str | None = None
    caption: str | None = None
    facts: bool = True

    @property
    def paths(self) -> tuple[str, ...]:
        return ("path", "file_name") if self.path is None else (self.path,)

    @property
    def captions(self) -> tuple[str, ...]:
        return ("caption", "text") if self.caption is None else (self.caption,)

    @property
    def required(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.paths, self.captions


USUAL = Columns()


@dataclass(frozen=True)
class Manifest:
    """The usable rows in the order of the file, the dropped ones as (path or line, reason), and columns asked for.

    `extra[column][i]` belongs to `samples[i]`; None where a row did not have it. notes: what else is to be said of the
    rows, a line each. unknown: clips whose captions mean nothing to the text encoder, as far as it was asked.
    """

    source: str
    samples: Samples
    dropped: Dropped
    extra: dict[str, list[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unknown: int = 0

    @classmethod
    def of(cls, source: str, samples: Iterable[Sample], dropped: Iterable[tuple[str, str]] = ()) -> Manifest:
        """From samples that are at hand; their paths must be absolute, or relative to the working folder."""
        return cls(source, Samples.of("", lambda: (Row(**asdict(sample)) for sample in samples))[0], Dropped(dropped))

    def summary(self, examples: int = 3) -> str:
        """Counts of what is kept and, by reason, of what is dropped, with the first few of each."""
        images = int(self.samples.is_image.sum())
        lines = [f"{self.source}: {counted(len(self.samples) - images, 'clip')} and {counted(images, 'image')}"]
        return "\n".join([*lines, *dropped_by_reason(self.dropped, examples), *(f"  {note}" for note in self.notes)])


def read_manifest(
    path: str | os.PathLike,
    *,
    columns: Columns = USUAL,
    check_files: bool = True,
    extra: Collection[str] = (),
    threads: int = 8,
) -> Manifest:
    """Reads a manifest by its ending; `check_files` looks at every file's existence and size (nothing is decoded).

    extra: further columns to keep, as far as there are such. A million rows take about 12 s, and a file below TMPDIR
    (`Shared`) of their texts and 40 bytes a row.
    Captions are one line each, whatever white space they have; a row may have a list of them, of which empty ones do
    not count. Rows that cannot be used are dropped and listed by reason: "missing", "empty-file",
    "more-frames-than-bytes", "empty-caption", "caption-encoding" (characters that only come of a wrong encoding),
    "caption-too-long", "bad-row" (no path, or a number that is none) and what `probe` finds where it must open a file
    ("unreadable", "truncated", "no-video", ...). Raises ManifestError where the manifest is missing, has another
    ending, is malformed (line number), lacks a required column, or has no usable row.
    """
    path = absolute(path)
    reader = READERS.get(os.path.splitext(name_of(path))[1].lower())
    if has_credentials(path):
        raise ManifestError(f"{shown(path)}: credentials and queries are not kept: set them in the environment instead")
    if not is_url(path) and os.path.isdir(path):
        raise ManifestError(f"{path} is a folder, not a manifest; {MAKE_ONE}")
    if reader is None:
        raise ManifestError(f"{path}: a manifest ends in {READABLE}; {MAKE_ONE}")
    table = _Table(path, columns, reader, tuple(patiently(partial(files_of, path), path)))
    samples, dropped = Samples.of(parent(path), table.rows, patiently(table.key, path))
    kept = table.extra(samples.row, extra)
    usable = look_at_files(samples, dropped, check_files=check_files, threads=threads, memory=Memory(path))
    kept = {name: list(compress(values, usable)) for name, values in kept.items()}
    manifest = Manifest(path, samples.where(usable), dropped, kept)
    if not manifest.samples:
        raise ManifestError(f"{path} has no usable row; mend these and try again\n{manifest.summary()}")
    return manifest


def check_output(path: str | os.PathLike) -> None:
    """Raises ManifestError unless a manifest can be written there: known before the work, not after it."""
    path = os.path.abspath(local(path, "OUT"))
    if os.path.splitext(path)[1].lower() not in WRITERS:
        raise ManifestError(f"{path}: a manifest ends in {ENDINGS}")
    if os.path.isdir(path):
        raise ManifestError(f"{path} is a folder; give the name of a file")
    if os.path.exists(path):
        check_is_file(path)
    try:
        with written_whole(f"{path}.try") as beside:
            beside.touch()
        os.unlink(f"{path}.try")
    except OSError as error:
        raise ManifestError(f"{path} cannot be written ({error.strerror}); give another place") from error


def write_manifest(path: str | os.PathLike, rows: Iterable[Sample | Mapping[str, Any]]) -> None:
    """Writes rows (with the columns of `Sample` and any more) by its ending.

    Absolute paths inside the manifest's folder become relative to it, so that the folder can be moved.
    """
    path = os.path.abspath(local(path, "OUT"))
    writer = WRITERS.get(os.path.splitext(path)[1].lower())
    if writer is None:
        raise ManifestError(f"{path}: a manifest ends in {ENDINGS}")
    folder = os.path.join(os.path.dirname(path), "")
    table = [_as_row(row) if isinstance(row, Sample) else dict(row) for row in rows]
    for row in table:
        row["path"] = os.fspath(row["path"]).removeprefix(folder)
        if has_credentials(row["path"]):
            raise ManifestError(f"{shown(row['path'])} has credentials or a query, which no manifest is to keep")
    with written_whole(path) as beside:
        writer(beside, table)


def _as_row(sample: Sample) -> dict[str, Any]:
    return {name: value for name, value in asdict(sample).items() if not sample.is_whole or name not in SEGMENT}


def scan_folder(folder: str | os.PathLike, *, captions: Sequence[str] = (), threads: int = 8) -> Manifest:
    """Finds the videos and images under `folder`, in the order of their paths, and opens each to count its frames.

    The caption of NAME.mp4 is the whole text of NAME.txt beside it, in one line; files without one have `captions`, one
    or several, where those are given. What is left out is counted by the reasons of `find_captioned` and
    `read_manifest`. Raises ManifestError where nothing is usable.
    """
    captions = [one_line(caption) for caption in captions]
    if any(not caption or is_garbage(caption) for caption in captions):
        raise ManifestError("a caption for all files is empty, or no UTF-8 text: say what they show")
    folder = os.path.abspath(local(folder, "FOLDER"))
    if not os.path.isdir(folder):
        raise ManifestError(f"{folder} is not a folder; give the folder that holds the clips")
    dropped = Dropped()
    samples, _ = Samples.of(folder, lambda: find_captioned(folder, dropped, captions))
    manifest = Manifest(
        folder, samples.where(look_at_files(samples, dropped, check_files=True, threads=threads)), dropped
    )
    if not manifest.samples:
        hint = "a caption for NAME.mp4 goes into NAME.txt beside it, one for all files is --caption"
        raise ManifestError(f"no usable clip or image; {hint}\n{manifest.summary()}")
    return manifest


# ---------------------------------------------------------------------------------------------------------- parsing


@dataclass(frozen=True)
class _Table:
    """A manifest's file, or files, as they are read."""

    path: str
    columns: Columns
    reader: Reader
    files: tuple[str, ...]

    def key(self) -> str:
        """Another one where any of its bytes, its place or the columns that are asked for are others."""
        content = [self._content(file) for file in self.files]
        alone = [] if self.columns.facts else ["no facts"]
        about = json.dumps([FORMAT, content, self.path, self.columns.required, *alone])
        return hashlib.blake2b(about.encode(), digest_size=16).hexdigest()

    def _content(self, path: str) -> str:
        """A digest of a file; of one that holds the clips themselves its size and date, as all of it is not read."""
        with self._open(path):
            if holds_clips(path, self.columns.paths):
                found = status(path)
                return f"{found.st_size} {found.st_mtime_ns}"
            with opened(path) as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    def rows(self) -> Iterator[Row]:
        """All rows, those with a fault too."""
        folder, line = parent(self.path), 0
        seen: dict[str, None] = {}  # columns, of the first rows that are needed to have met the required ones
        for line, row in self._read((*FACTS, *SEGMENT)):
            if not all(any(name in seen for name in group) for group in self.columns.required):
                seen |= dict.fromkeys(list(row)[:100])
            path, caption = (_first(row, names) for names in self.columns.required)
            place = join(folder, path) if isinstance(path, str) else ""
            if not place or not path.strip():
                yield Row(f"line {line}", fault="bad-row")
            elif (reason := fault_of(captions := each_of(caption))) is not None:
                yield Row(f"{shown(place)}, row {line}", fault=reason)
            elif (facts := self._facts(row)) is None or (segment := _segment(row)) is None:
                yield Row(f"{shown(place)}, row {line}", fault="bad-row")
            else:
                yield Row(path, joined([one_line(text) for text in captions]), *facts, line, "", *segment)
        if line == 0:
            raise ManifestError(f"{self.path} has no rows; {MAKE_ONE}")
        for group in self.columns.required:
            if not any(name in seen for name in group):
                raise ManifestError(no_column(self.path, group, seen))

    def _facts(self, row: dict[str, Any]) -> tuple[int, float, int, int] | None:
        return _facts(row) if self.columns.facts else UNKNOWN

    def extra(self, kept: np.ndarray, names: Collection[str]) -> dict[str, list[Any]]:
        """Further columns, as far as there are such, of the rows of these numbers, which ascend."""
        found: dict[str, list[Any]] = {}
        if names:
            numbers, place = iter(kept.tolist()), 0
            number = next(numbers, None)
            for line, row in self._read(names):
                if line != number:
                    continue
                for name in names:
                    if name in row or name in found:
                        found.setdefault(name, [None] * place).append(row.get(name))
                number, place = next(numbers, None), place + 1
        return found

    def _read(self, names: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        wanted = {*self.columns.paths, *self.columns.captions, *names}
        before, line = 0, 0
        for path in self.files:
            with self._open(path):
                for line, row in self.reader(path, wanted, self.columns.required):
                    yield before + line, row
            before += line

    @contextmanager
    def _open(self, path: str) -> Iterator[None]:
        """Says which file cannot be read."""
        try:
            yield
        except UnicodeError as error:
            raise ManifestError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
        except (pyarrow.ArrowException, OSError) as error:
            raise ManifestError(f"{path} cannot be read ({error}); write it again") from error


def _first(row: dict[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _segment(row: dict[str, Any]) -> tuple[float, float] | None:
    """start and end of a row, in seconds; None where senseless."""
    found = []
    for name, missing in zip(SEGMENT, (0.0, math.inf), strict=True):
        value = row.get(name)
        try:
            value = missing if value is None or value == "" or value != value else float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        found.append(value)
    start, end = found
    return (start, end) if 0 <= start < end else None


def _facts(row: dict[str, Any]) -> tuple[int, float, int, int] | None:
    """frames, fps, height, width of a row, UNKNOWN where missing; None where senseless."""
    values = []
    for name, unknown in zip(FACTS, UNKNOWN, strict=True):
        value = row.get(name)
        if value is None or value == "" or value != value:  # the last: NaN, as tables write a missing number
            values.append(unknown)
            continue
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        most = {"frames": range_of("frames").high, "fps": 2**31}.get(name, LARGEST_SIDE)
        if isinstance(value, bool) or not (name != "fps") <= number <= most:
            return None
        if name != "fps":
            if number != int(number):
                return None
            number = int(number)
        values.append(number)
    return tuple(values)
