"""What a curation leaves: manifests, all segments with their measures, what is bad, a summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ..config.parsing import to_dict
from ..config.yaml_files import dump_yaml
from ..errors import UserError
from ..files import write_whole, written_whole
from ..places import has_credentials, relative, shown
from ..words import counted
from .columns import Column
from .encoding import encoded_size
from .probing import Row
from .settings import Curation

TRAIN, VALIDATION, SEGMENTS = "train.parquet", "validation.parquet", "segments.parquet"
BAD, SUMMARY, SETTINGS = "bad.jsonl", "summary.json", "curation.yaml"
OUTPUTS = (TRAIN, VALIDATION, SEGMENTS, BAD, SETTINGS, SUMMARY)  # in the order in which they are written
_TYPES = {"number": pyarrow.float64(), "text": pyarrow.string()}
_WHOLE = {"frames", "height", "width", "shot", "length", "words", "rotation", "matrix", "primaries", "transfer"}
_WHOLE |= {"border_top", "border_bottom", "border_left", "border_right"}


@dataclass(frozen=True)
class Summary:
    """files, bad: numbers of files, and of bad files and segments. segments, seconds: all that were measured. train,
    validation: {"segments", "seconds", "sources"} of what stays. dropped, left_out: reason -> [number, seconds], of
    segments, and of parts of shots that are in none."""

    files: int
    bad: dict[str, int]
    segments: int
    seconds: float
    train: dict[str, float]
    validation: dict[str, float]
    dropped: dict[str, list[float]]
    left_out: dict[str, list[float]]

    def __str__(self) -> str:
        lines = [
            f"{counted(self.files, 'file')}, {counted(self.segments, 'segment')}, {self.seconds:,.0f} s",
            *(f"  {name}: {_said(part)}" for name, part in (("train", self.train), ("validation", self.validation))),
            *(f"  dropped {n:.0f} ({reason}): {s:,.0f} s" for reason, (n, s) in self.dropped.items()),
            *(f"  in no segment: {s:,.0f} s ({reason}, {n:.0f} times)" for reason, (n, s) in self.left_out.items()),
            *(f"  bad {n} ({reason})" for reason, n in self.bad.items()),
        ]
        return "\n".join(lines)


def _said(part: Mapping[str, float]) -> str:
    return f"{part['segments']:.0f} segments of {part['sources']:.0f} files, {part['seconds']:,.0f} s"


def write_outputs(
    out: Path,
    settings: Curation,
    rows: Sequence[Row],
    bad: Sequence[Mapping[str, Any]],
    left: Mapping[str, tuple[int, float]],
    paths: Mapping[str, str],
    place: str | None = None,
) -> Summary:
    """Writes, each file whole, the summary last: train.parquet and validation.parquet, manifests of the rows that stay;
    segments.parquet, all rows with why each is dropped; bad.jsonl; curation.yaml, all settings; summary.json.

    place: where they will lie, if not in `out`. Paths are relative to it within this machine or a bucket, so the bytes
    are the same wherever footage and outputs lie beside each other.
    """
    held_out = validation_sources(rows, settings)
    place = str(out) if place is None else place
    kept = [_manifest_row(row, paths, place) for row in rows if not row["dropped"]]
    sides = [[row for row in kept if (row["source"] in held_out) is held] for held in (False, True)]
    for name, side in zip((TRAIN, VALIDATION), sides, strict=True):
        _write(out / name, side, _schema(settings.columns, side, manifest=True))
    everything = [_manifest_row(row, paths, place) | {"dropped": row["dropped"]} for row in rows]
    _write(out / SEGMENTS, everything, _schema(settings.columns, everything, manifest=False))
    ordered = sorted(bad, key=lambda each: (each["source"], each.get("start") or 0.0))
    write_whole(out / BAD, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in ordered))
    write_whole(out / SETTINGS, dump_yaml(to_dict(settings)))
    summary = Summary(
        files=len(paths),
        bad=_counts(each["reason"] for each in ordered),
        segments=len(rows),
        seconds=_seconds(rows),
        train=_part(sides[0]),
        validation=_part(sides[1]),
        dropped=_by_reason(rows),
        left_out={reason: [n, round(seconds, 3)] for reason, (n, seconds) in sorted(left.items())},
    )
    write_whole(out / SUMMARY, json.dumps(asdict(summary), indent=1) + "\n")
    return summary


def validation_sources(rows: Sequence[Row], settings: Curation) -> set[str]:
    """The files that are held out: those of which a number that seed and name make is below the share, so that no file
    changes sides when others come. Files that share footage are on one side: the name is that of the first of them."""
    first: dict[str, str] = {row["source"]: row["source"] for row in rows}

    def root(name: str) -> str:
        while first[name] != name:
            name = first[name]
        return name

    for row in rows:
        if other := row.get("duplicate_of"):
            low, high = sorted((root(row["source"]), root(other)))
            first[high] = low
    return {name for name in first if _number(settings.split.seed, root(name)) < settings.split.validation}


def _number(seed: int, name: str) -> float:
    """0 to 1."""
    return int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") / 2**64


def _manifest_row(row: Row, paths: Mapping[str, str], place: str) -> Row:
    """As manifests have it: an encoded segment is a file of its own, and the file's facts are its own."""
    path = paths[row["source"]]
    if has_credentials(path):
        raise UserError(f"{shown(path)} has credentials or a query, which no manifest is to keep")
    made = {**row, "path": relative(path, place)}
    if row.get("encoded") and not row["dropped"]:
        made["height"], made["width"] = encoded_size(row)
        made |= {
            "path": row["encoded"],
            "start": None,
            "end": None,
            "frames": row["count"],
            "source_start": row["start"],
        }
    return made


def _schema(columns: Mapping[str, Column], rows: Sequence[Row], *, manifest: bool) -> pyarrow.Schema:
    several = any(len(row["caption"] or ()) > 1 for row in rows)
    fields = {"path": pyarrow.string(), "caption": pyarrow.list_(pyarrow.string()) if several else pyarrow.string()}
    for name, column in columns.items():
        fields[name] = pyarrow.int64() if name in _WHOLE else _TYPES[column.kind]
    if manifest:
        fields["source_start"] = pyarrow.float64()
    else:
        fields |= {"dropped": pyarrow.string(), "duplicate_of": pyarrow.string(), "duplicate_start": pyarrow.float64()}
    return pyarrow.schema(fields)


def _write(path: Path, rows: Sequence[Row], schema: pyarrow.Schema) -> None:
    several = pyarrow.types.is_list(schema.field("caption").type)
    captions = [row["caption"] if several or not row["caption"] else row["caption"][0] for row in rows]
    columns = [
        pyarrow.array(captions if field.name == "caption" else [row.get(field.name) for row in rows], field.type)
        for field in schema
    ]
    with written_whole(path) as beside:
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), beside)


def _seconds(rows: Sequence[Row]) -> float:
    return round(sum(row["seconds"] for row in rows), 3)


def _part(rows: Sequence[Row]) -> dict[str, float]:
    return {"segments": len(rows), "seconds": _seconds(rows), "sources": len({row["source"] for row in rows})}


def _counts(reasons: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for reason in reasons:
        found[reason] = found.get(reason, 0) + 1
    return dict(sorted(found.items()))


def _by_reason(rows: Sequence[Row]) -> dict[str, list[float]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["dropped"]:
            found.setdefault(row["dropped"], []).append(row)
    return {reason: [len(part), _seconds(part)] for reason, part in sorted(found.items())}
