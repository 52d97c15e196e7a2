"""Manifests: which clips and images to train on, with their captions.

A manifest is a table with one row per file, as JSON lines (.jsonl), CSV (.csv) or Parquet (.parquet). Columns `path`
(relative to the manifest's folder, or absolute) and `caption` are required; `frames`, `fps`, `height`, `width` are
found by opening the files where they are missing; any other column is kept aside.

    python -m latentvid.data.manifest FOLDER OUT.jsonl     # makes one from a folder of clips with NAME.txt beside each
"""

import argparse
import math
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow
from tqdm import tqdm

from latentvid.data.tables import READERS, WRITERS, ManifestError
from latentvid.data.video import IMAGE_ENDINGS, VIDEO_ENDINGS, VideoInfo, probe
from latentvid.errors import ClipError, user_errors
from latentvid.files import written_whole

_FACTS = ("frames", "fps", "height", "width")
_MAKE_ONE = "make one with `python -m latentvid.data.manifest FOLDER OUT.jsonl`"


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip or image: absolute path, caption, number of frames, frames per second (0: image), size in pixels."""

    path: str
    caption: str
    frames: int
    fps: float
    height: int
    width: int


def dropped_by_reason(dropped: Iterable[tuple[str, str]], examples: int = 3) -> list[str]:
    """A line for each reason of (path, reason), the commonest first: how many, and the first few."""
    reasons: dict[str, list[str]] = {}
    for path, reason in dropped:
        reasons.setdefault(reason, []).append(path)
    lines = []
    for reason, paths in sorted(reasons.items(), key=lambda item: -len(item[1])):
        more = ", ..." if len(paths) > examples else ""
        lines.append(f"  dropped {len(paths)} ({reason}): {', '.join(paths[:examples])}{more}")
    return lines


@dataclass
class Manifest:
    """The usable rows in the order of the file, the dropped ones as (path or line, reason), and the other columns.

    `extra[column][i]` belongs to `samples[i]`; None where a row did not have it.
    """

    source: str
    samples: list[Sample]
    dropped: list[tuple[str, str]]
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def summary(self, examples: int = 3) -> str:
        """Counts of what is kept and, by reason, of what is dropped, with the first few of each."""
        images = sum(sample.fps == 0 and sample.frames == 1 for sample in self.samples)
        lines = [f"{self.source}: {len(self.samples) - images} clips and {images} images"]
        return "\n".join(lines + dropped_by_reason(self.dropped, examples))


def read_manifest(path: str | os.PathLike, *, check_files: bool = True, threads: int = 8) -> Manifest:
    """Reads a manifest by its ending; `check_files` looks at every file's existence and size (nothing is decoded).

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
        rows = _parse(path, reader(path))
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise ManifestError(f"{path} cannot be read ({error}); write it again") from error
    manifest = _inspect(path, rows, check_files, threads)
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
    rows = _Rows([], [], {})
    for place, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            stem, ending = os.path.splitext(os.path.join(place, name))
            if ending.lower() not in IMAGE_ENDINGS | VIDEO_ENDINGS or name.startswith("."):
                continue
            try:
                with open(stem + ".txt", encoding="utf-8-sig", errors="replace") as file:
                    caption = next((line.strip() for line in file if line.strip()), "")
            except OSError:
                rows.dropped.append((stem + ending, "no-caption"))
                continue
            if caption:
                rows.kept.append((stem + ending, caption, None, None, None, None))
            else:
                rows.dropped.append((stem + ending, "empty-caption"))
    manifest = _inspect(folder, rows, check_files=True, threads=threads)
    if not manifest.samples:
        hint = "a caption for NAME.mp4 goes into NAME.txt beside it"
        raise ManifestError(f"no usable clip or image; {hint}\n{manifest.summary()}")
    return manifest


# ---------------------------------------------------------------------------------------------------------- parsing


@dataclass
class _Rows:
    kept: list[tuple]  # (path, caption, frames, fps, height, width), the last four None where not given
    dropped: list[tuple[str, str]]
    extra: dict[str, list[Any]]


def _parse(source: str, table: Iterable[tuple[int, dict[str, Any]]]) -> _Rows:
    folder = os.path.dirname(source)
    rows = _Rows([], [], {})
    seen: set[str] = set()
    line = 0
    for line, row in table:
        seen.update(row.keys() & {"path", "caption"})
        path, caption = row.pop("path", None), row.pop("caption", None)
        if not isinstance(path, str) or not path.strip():
            rows.dropped.append((f"line {line}", "bad-row"))
            continue
        path = os.path.join(folder, path)
        if caption is None or (isinstance(caption, str) and not caption.strip()):
            rows.dropped.append((path, "empty-caption"))
            continue
        try:
            facts = _facts(row)
        except (TypeError, ValueError, OverflowError):
            facts = None
        if facts is None or not isinstance(caption, str):
            rows.dropped.append((path, "bad-row"))
            continue
        for name in row.keys() - rows.extra.keys():
            rows.extra[name] = [None] * len(rows.kept)
        for name, column in rows.extra.items():
            column.append(row.get(name))
        rows.kept.append((path, caption.strip(), *facts))
    if line == 0:
        raise ManifestError(f"{source} has no rows; {_MAKE_ONE}")
    for name in ("path", "caption"):
        if name not in seen:
            raise ManifestError(f"{source} has no column `{name}`; every row needs `path` and `caption`")
    return rows


def _facts(row: dict[str, Any]) -> tuple[int | None, float | None, int | None, int | None]:
    """Takes frames, fps, height, width out of a row; None where missing; ValueError or TypeError where senseless."""
    values = []
    for name in _FACTS:
        value = row.pop(name, None)
        if value is None or value == "" or value != value:  # the last: NaN, as tables write a missing number
            values.append(None)
            continue
        number = float(value)
        if isinstance(value, bool) or not math.isfinite(number) or number < (name != "fps"):
            raise ValueError(name)
        if name != "fps":
            if number != int(number):
                raise ValueError(name)
            number = int(number)
        values.append(number)
    return tuple(values)


# ------------------------------------------------------------------------------------------------- looking at files


def _inspect(source: str, rows: _Rows, check_files: bool, threads: int) -> Manifest:
    """Looks at the files as far as asked or needed, and keeps what can be used."""
    faults: list[str | None] = [None] * len(rows.kept)
    found: dict[int, VideoInfo] = {}
    with ThreadPoolExecutor(threads) as pool:
        if check_files:
            paths = [row[0] for row in rows.kept]
            chunks = [paths[begin : begin + 2048] for begin in range(0, len(paths), 2048)]
            faults = [fault for chunk in pool.map(_file_faults, chunks) for fault in chunk]
        unknown = [i for i, row in enumerate(rows.kept) if faults[i] is None and None in row]
        results = pool.map(_probe_or_reason, [rows.kept[i][0] for i in unknown])
        for i, result in tqdm(zip(unknown, results, strict=True), "probing", len(unknown), unit="file", disable=None):
            if isinstance(result, VideoInfo):
                found[i] = result
            else:
                faults[i] = result
    samples = [_sample(row, found.get(i)) for i, row in enumerate(rows.kept) if faults[i] is None]
    dropped = rows.dropped + [(row[0], fault) for row, fault in zip(rows.kept, faults, strict=True) if fault]
    extra = rows.extra
    if len(samples) < len(rows.kept):
        extra = {
            name: [value for value, fault in zip(column, faults, strict=True) if fault is None]
            for name, column in extra.items()
        }
    return Manifest(source, samples, dropped, extra)


def _sample(row: tuple, info: VideoInfo | None) -> Sample:
    if info is None:
        return Sample(*row)
    path, caption, *facts = row
    return Sample(
        path,
        caption,
        *(getattr(info, name) if fact is None else fact for name, fact in zip(_FACTS, facts, strict=True)),
    )


def _file_faults(paths: list[str]) -> list[str | None]:
    return [_file_fault(path) for path in paths]


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
