"""Manifests: which clips and images to train on, with their captions.

A manifest is a table with one row per file, as JSON lines (.jsonl), CSV (.csv) or Parquet (.parquet). Columns `path`
(relative to the manifest's folder, or absolute) and `caption` are required; `frames`, `fps`, `height`, `width` are
found by opening the files where they are missing; any other column is kept where it is asked for.

    python -m latentvid.data.manifest FOLDER OUT.jsonl     # makes one from a folder of clips with NAME.txt beside each
"""

from __future__ import annotations

import argparse
import math
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
import pyarrow
from tqdm import tqdm

from latentvid.data.kinds import IMAGE_ENDINGS, VIDEO_ENDINGS
from latentvid.data.samples import Dropped, Rows, Sample, Samples, dropped_by_reason
from latentvid.data.tables import READERS, WRITERS, ManifestError
from latentvid.data.video import VideoInfo, probe
from latentvid.errors import ClipError, user_errors
from latentvid.files import written_whole

_REQUIRED = ("path", "caption")
_FACTS = ("frames", "fps", "height", "width")
_UNKNOWN = (0, math.nan, 0, 0)
_MAKE_ONE = "make one with `python -m latentvid.data.manifest FOLDER OUT.jsonl`"


@dataclass(frozen=True)
class Manifest:
    """The usable rows in the order of the file, the dropped ones as (path or line, reason), and columns asked for.

    `extra[column][i]` belongs to `samples[i]`; None where a row did not have it.
    """

    source: str
    samples: Samples
    dropped: Dropped
    extra: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str, samples: Iterable[Sample], dropped: Iterable[tuple[str, str]] = ()) -> Manifest:
        """From samples that are at hand; their paths must be absolute, or relative to the working folder."""
        rows = Rows("")
        for sample in samples:
            rows.add(*astuple(sample))
        return cls(source, rows.samples(), Dropped(dropped))

    def summary(self, examples: int = 3) -> str:
        """Counts of what is kept and, by reason, of what is dropped, with the first few of each."""
        images = int(self.samples.is_image.sum())
        lines = [f"{self.source}: {len(self.samples) - images} clips and {images} images"]
        return "\n".join(lines + dropped_by_reason(self.dropped, examples))


def read_manifest(
    path: str | os.PathLike, *, check_files: bool = True, extra: Collection[str] = (), threads: int = 8
) -> Manifest:
    """Reads a manifest by its ending; `check_files` looks at every file's existence and size (nothing is decoded).

    extra: further columns to keep, as far as there are such. A million rows take about 12 s and 300 MB.
    Rows that cannot be used are dropped and listed by reason: "missing", "empty-file", "empty-caption", "bad-row"
    (no path, or a number that is none) and what `probe` finds where it must open a file ("unreadable", "truncated",
    "no-video"). Raises ManifestError where the manifest is missing, has another ending, is malformed (line number),
    lacks a required column, or has no usable row.
    """
    path = os.path.abspath(path)
    reader = READERS.get(os.path.splitext(path)[1].lower())
    if os.path.isdir(path):
        raise ManifestError(f"{path} is a folder, not a manifest; {_MAKE_ONE}")
    if reader is None:
        raise ManifestError(f"{path}: a manifest ends in .jsonl, .csv or .parquet; {_MAKE_ONE}")
    if not os.path.exists(path):
        raise ManifestError(f"{path}: there is no such manifest; correct the path or {_MAKE_ONE}")
    try:
        rows, dropped, kept = _parse(path, reader(path, {*_REQUIRED, *_FACTS, *extra}, _REQUIRED), extra)
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise ManifestError(f"{path} cannot be read ({error}); write it again") from error
    manifest = _inspect(path, rows, dropped, kept, check_files, threads)
    if not manifest.samples:
        raise ManifestError(f"{path} has no usable row; mend these and try again\n{manifest.summary()}")
    return manifest


def write_manifest(path: str | os.PathLike, rows: Iterable[Sample | Mapping[str, Any]]) -> None:
    """Writes rows (with the columns of `Sample` and any more) by the ending .jsonl, .csv or .parquet.

    Absolute paths inside the manifest's folder become relative to it, so that the folder can be moved.
    """
    path = os.path.abspath(path)
    writer = WRITERS.get(os.path.splitext(path)[1].lower())
    if writer is None:
        raise ManifestError(f"{path}: a manifest ends in .jsonl, .csv or .parquet")
    folder = os.path.join(os.path.dirname(path), "")
    table = [asdict(row) if isinstance(row, Sample) else dict(row) for row in rows]
    for row in table:
        row["path"] = os.fspath(row["path"]).removeprefix(folder)
    with written_whole(path) as beside:
        writer(beside, table)


def scan_folder(folder: str | os.PathLike, *, threads: int = 8) -> Manifest:
    """Finds the videos and images under `folder`, in the order of their paths, and opens each to count its frames.

    The caption of NAME.mp4 is the first line with text in NAME.txt beside it; files without one are dropped
    ("no-caption", "empty-caption"). Raises ManifestError where nothing is usable.
    """
    folder = os.path.abspath(folder)
    if not os.path.isdir(folder):
        raise ManifestError(f"{folder} is not a folder; give the folder that holds the clips")
    rows, dropped = Rows(folder), Dropped()
    for place, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            stem, ending = os.path.splitext(os.path.join(place, name))
            if ending.lower() not in IMAGE_ENDINGS | VIDEO_ENDINGS or name.startswith("."):
                continue
            try:
                with open(stem + ".txt", encoding="utf-8-sig", errors="replace") as file:
                    caption = next((line.strip() for line in file if line.strip()), "")
            except OSError:
                dropped.add(stem + ending, "no-caption")
                continue
            if caption:
                rows.add(os.path.relpath(stem + ending, folder), caption, *_UNKNOWN)
            else:
                dropped.add(stem + ending, "empty-caption")
    manifest = _inspect(folder, rows, dropped, {}, check_files=True, threads=threads)
    if not manifest.samples:
        hint = "a caption for NAME.mp4 goes into NAME.txt beside it"
        raise ManifestError(f"no usable clip or image; {hint}\n{manifest.summary()}")
    return manifest


# ---------------------------------------------------------------------------------------------------------- parsing


def _parse(
    source: str, table: Iterable[tuple[int, dict[str, Any]]], extra: Collection[str]
) -> tuple[Rows, Dropped, dict[str, list[Any]]]:
    folder = os.path.dirname(source)
    rows, dropped = Rows(folder), Dropped()
    kept: dict[str, list[Any]] = {}
    seen: set[str] = set()
    line = 0
    for line, row in table:
        if len(seen) < 2:
            seen.update(row.keys() & set(_REQUIRED))
        path, caption = row.get("path"), row.get("caption")
        if not isinstance(path, str) or not path.strip():
            dropped.add(f"line {line}", "bad-row")
        elif caption is None or (isinstance(caption, str) and not caption.strip()):
            dropped.add(os.path.join(folder, path), "empty-caption")
        elif not isinstance(caption, str) or (facts := _facts(row)) is None:
            dropped.add(os.path.join(folder, path), "bad-row")
        else:
            for name in extra:
                if name in row or name in kept:
                    kept.setdefault(name, [None] * len(rows)).append(row.get(name))
            rows.add(path, caption.strip(), *facts)
    if line == 0:
        raise ManifestError(f"{source} has no rows; {_MAKE_ONE}")
    for name in _REQUIRED:
        if name not in seen:
            raise ManifestError(f"{source} has no column `{name}`; every row needs `path` and `caption`")
    return rows, dropped, kept


def _facts(row: dict[str, Any]) -> tuple[int, float, int, int] | None:
    """frames, fps, height, width of a row, _UNKNOWN where missing; None where senseless."""
    values = []
    for name, unknown in zip(_FACTS, _UNKNOWN, strict=True):
        value = row.get(name)
        if value is None or value == "" or value != value:  # the last: NaN, as tables write a missing number
            values.append(unknown)
            continue
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        if isinstance(value, bool) or not (name != "fps") <= number < 2**31:
            return None
        if name != "fps":
            if number != int(number):
                return None
            number = int(number)
        values.append(number)
    return tuple(values)


# ------------------------------------------------------------------------------------------------- looking at files


def _inspect(
    source: str, rows: Rows, dropped: Dropped, extra: dict[str, list[Any]], check_files: bool, threads: int
) -> Manifest:
    """Looks at the files as far as asked or needed, and keeps what can be used."""
    samples = rows.samples()
    kept = np.ones(len(samples), bool)

    def drop(i: int, reason: str) -> None:
        kept[i] = False
        dropped.add(samples.path(i), reason)

    with ThreadPoolExecutor(threads) as pool:
        if check_files:
            chunks = [range(begin, min(begin + 2048, len(samples))) for begin in range(0, len(samples), 2048)]
            for faults in pool.map(partial(_file_faults, samples), chunks):
                for i, reason in faults:
                    drop(i, reason)
        unknown = np.isnan(samples.fps) | (np.minimum(samples.frames, np.minimum(samples.height, samples.width)) == 0)
        unknown = np.flatnonzero(unknown & kept)
        waves = [unknown[begin : begin + 1024] for begin in range(0, len(unknown), 1024)]
        results = (result for wave in waves for result in pool.map(_probe_or_reason, map(samples.path, wave)))
        for i, result in tqdm(zip(unknown, results, strict=True), "probing", len(unknown), unit="file", disable=None):
            if isinstance(result, VideoInfo):
                _fill(samples, i, result)
            else:
                drop(i, result)
    if not kept.all():
        samples = samples.where(kept)
        extra = {name: list(compress(column, kept)) for name, column in extra.items()}
    return Manifest(source, samples, dropped, extra)


def _fill(samples: Samples, i: int, info: VideoInfo) -> None:
    for name, unknown in zip(_FACTS, _UNKNOWN, strict=True):
        column = getattr(samples, name)
        if column[i] == unknown or column[i] != column[i]:
            column[i] = getattr(info, name)


def _file_faults(samples: Samples, chunk: range) -> list[tuple[int, str]]:
    return [(i, fault) for i in chunk if (fault := _file_fault(samples.path(i)))]


def _file_fault(path: str) -> str | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a path with a null character
        return "missing"
    if not stat.S_ISREG(status.st_mode):
        return "missing"
    return None if status.st_size else "empty-file"


def _probe_or_reason(path: str) -> VideoInfo | str:
    try:
        return probe(path)
    except ClipError as error:
        return error.reason


@user_errors()
def main() -> None:
    """Makes a manifest of a folder."""
    parser = argparse.ArgumentParser(prog="python -m latentvid.data.manifest", description="Manifest of a folder.")
    parser.add_argument("folder", help="folder of videos and images, each with its caption in NAME.txt beside it")
    parser.add_argument("output", help="manifest to write: .jsonl, .csv or .parquet")
    arguments = parser.parse_args()
    manifest = scan_folder(arguments.folder)
    write_manifest(arguments.output, manifest.samples)
    print(manifest.summary())
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
