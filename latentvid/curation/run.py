"""A curation from footage to manifests: which units of work there are, and what becomes of what they make.

Rows are dicts. A file's row is `probing.probed`'s; a segment's has that, `probing.segments`' and what is measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ..config.parsing import to_dict
from ..data.access.files import ask_together, is_plain, status
from ..data.storage import patiently
from ..errors import ClipError
from ..lock import FolderLock
from ..progress import phase
from . import measuring
from .captioning import Describer, caption_of, check_template, sidecar
from .columns import CAPTIONED, COMPARED, LOOKED_AT, MEASURED
from .encoding import encode_segments, encoded_name
from .features import Embedder, closest, read_features
from .footage import File, find_files
from .hashing import Signature, same_as
from .journal import Journal, key_of
from .networks import ClipFit, Networks
from .output import Output
from .probing import Row, cut, groups, probed, segments
from .settings import Curation
from .writing import Summary, write_outputs

VERSION = 1  # of what the stages make: raise it when the same footage becomes other rows
CRASHED = "crashes-the-reader"  # of a unit over which a process died again and again
SEEN = ("first", "count", "fps", "border_top", "border_bottom", "border_left", "border_right", "encoded")  # by stages


class Workers(Protocol):
    """What runs units: `engine.Engine`, or in a test a loop."""

    def map(
        self, make: Callable[[], Callable[[Mapping[str, Any]], Any]], units: Iterable[tuple[str, Any]], *, network: bool
    ) -> Iterator[tuple[str, Any]]: ...


def curate(
    settings: Curation,
    source: str | os.PathLike,
    out: str | os.PathLike,
    running: Callable[[], AbstractContextManager[Workers]],
) -> Summary:
    """Writes the manifests of `writing.write_outputs` into `out` and says what became of the footage.

    running: opens what runs the units of work. Killed, and started again, it goes on where it was; its outputs depend
    on footage and settings alone. Raises UserError where settings or footage cannot be used, and StorageError where the
    storage is gone: both can be mended, and the curation started again.
    """
    out = Output(out)
    if settings.captions.template is not None:
        check_template(settings.captions.template, [*settings.columns])
    with FolderLock(out.folder), ExitStack() as stack:
        out.open()
        files, left_out = find_files(source, out.place)
        workers = stack.enter_context(running())
        run = _Run(settings, out, {file.source: file for file in files}, workers)
        bad = [{"source": name, "reason": reason} for name, reason in left_out]
        found, left = run.look()
        bad += [{"source": row["source"], "reason": row["fault"]} for row in found if "fault" in row]
        rows = run.measure([row for row in found if "fault" not in row])
        bad += [
            {"source": row["source"], "start": row["start"], "end": row["end"], "reason": row["fault"]}
            for row in rows
            if "fault" in row
        ]
        rows = [row for row in rows if "fault" not in row]
        run.finish(rows)
        paths = {file.source: file.path for file in files}
        summary = write_outputs(out.folder, settings, rows, bad, left, paths, out.place)
        out.send_outputs()
        return summary


class _Run:
    def __init__(self, settings: Curation, out: Output, files: dict[str, File], workers: Workers) -> None:
        self.settings, self.out, self.files, self.workers = settings, out, files, workers
        self.filters = list(settings.parsed)

    def look(self) -> tuple[list[Row], dict[str, tuple[int, float]]]:
        """(the rows of all files, with their cuts and segments; what segments leave out: reason -> (times, seconds))"""
        shots = self.settings.shots
        weights = None if shots.weights is None else _state(str(shots.weights))
        units = {}
        ask_together(file.path for file in self.files.values())
        for file in self.files.values():
            key = key_of(VERSION, "file", file.source, _state(file.path), to_dict(shots), weights)
            units[file.source] = (key, {"file": file.path, "source": file.source})
        made = self._made("files", partial(_looker, shots), units)
        left: dict[str, tuple[int, float]] = {}
        rows = []
        for name, (key, _) in units.items():
            row = {**made[name], "source": name, "key": key}
            if "fault" not in row:
                row["segments"], lost = segments(row, self.settings.segments)
                for seconds, reason in lost:
                    count, total = left.get(reason, (0, 0.0))
                    left[reason] = count + 1, total + seconds
            rows.append(row)
        return rows, left

    def measure(self, rows: list[Row]) -> list[Row]:
        """The rows of all segments, in the order of their files and times."""
        area, units, parts = self.settings.measures.area, {}, {}
        for row in rows:
            of_file = {name: row[name] for name in ("fps", "height", "width")}
            for n, group in enumerate(groups(row["segments"])):
                spans = [[each["first"], each["count"]] for each in group]
                name = f"{row['source']}\0{n}"
                parts[name] = row, group
                unit = {**of_file, "file": self.files[row["source"]].path, "segments": group}
                units[name] = (key_of(VERSION, measuring.VERSION, "measures", row["key"], area, spans), unit)
        made = self._made("measures", partial(_measurer, area), units)
        found = []
        for name, (row, group) in parts.items():
            about = {key: value for key, value in row.items() if key not in ("segments", "cuts", "key", "file")}
            each = made[name] if isinstance(made[name], list) else [made[name]] * len(group)
            found += [about | part | measures for part, measures in zip(group, each, strict=True)]
        return found

    def finish(self, rows: list[Row]) -> None:
        """Captions, and `dropped` of each row: why it is left out, or empty."""
        for row in rows:
            row["dropped"], row["caption"] = "", None
        self._filter(rows, MEASURED)
        if self.settings.duplicates.remove:
            self._same(rows)
        measures = self.settings.measures
        if measures.own or measures.text or set(measures.networks) - {"clip"}:
            places = [measures.weights, *([] if measures.text is None else [measures.text])]
            self._add(rows, "networks", partial(Networks, measures), measures, *places)
        self._filter(rows, LOOKED_AT)
        self._caption(rows)
        self._filter(rows, CAPTIONED)
        if "clip" in measures.networks:
            self._add(rows, "clip", partial(ClipFit, measures), measures, measures.weights)
        self._filter(rows, COMPARED)
        self._encode(rows)

    def _filter(self, rows: list[Row], stage: int) -> None:
        """By the filters whose columns are all known after that stage."""
        columns = self.settings.columns
        for each in self.filters:
            if max(columns[name].stage for name in each.names) == stage:
                for row in _kept(rows):
                    if not each(row):
                        row["dropped"] = each.text

    def _same(self, rows: list[Row]) -> None:
        """The largest of those that show the same stays; then the longest, then the first by name."""
        kept, shots = _ranked(rows)
        settings, signatures = self.settings.duplicates, []
        for row, shot in zip(kept, shots, strict=True):
            looks, changes = (measuring.read_hashes(row[name]) for name in ("looks", "changes"))
            signatures.append(Signature(looks, changes, shot))
        with phase("looking for duplicates"):
            _drop_same(kept, same_as(signatures, settings.distance, settings.mirrored))
        if settings.similarity is not None:
            measures = self.settings.measures
            self._add(
                rows, "embeddings", partial(Embedder, measures), measures.frames, measures.weights, name="features"
            )
            kept, shots = _ranked(rows)
            features = [row.pop("features") for row in kept]
            if features:
                _drop_same(kept, closest(read_features(features), shots, settings.similarity))

    def _caption(self, rows: list[Row]) -> None:
        settings = self.settings.captions
        beside = {}
        for name in dict.fromkeys(row["source"] for row in _kept(rows)):
            try:
                beside[name] = sidecar(self.files[name]) if "sidecar" in settings.sources else None
            except ClipError as error:
                beside[name] = error
        waiting = [row for row in _kept(rows) if not isinstance(beside[row["source"]], ClipError)]
        said: dict[int, str | None] = {}
        if settings.model is not None and "model" in settings.sources:
            before = settings.sources[: settings.sources.index("model")]
            asked = [
                row for row in waiting
                if not ("manifest" in before and self.files[row["source"]].captions)
                and not ("sidecar" in before and beside[row["source"]])
            ]  # fmt: skip
            self._add(asked, "captions", partial(Describer, settings), settings, settings.model, name="said")
            said = {id(row): row.pop("said", None) for row in asked}
        for row in _kept(rows):
            found = beside[row["source"]]
            if isinstance(found, ClipError):
                row["dropped"] = found.reason
                continue
            captions = caption_of(row, settings, self.files[row["source"]].captions, found, said.get(id(row)))
            row["caption"] = captions
            row["words"] = None if captions is None else len(captions[0].split())
            row["dropped"] = row["dropped"] or ("" if captions else "no-caption")

    def _encode(self, rows: list[Row]) -> None:
        mode = self.settings.encode
        chosen = [row for row in _kept(rows) if mode == "all" or (mode == "borders" and row["border"])]
        for row in chosen:
            row["encoded"] = encoded_name(row)
        self._add(chosen, "encoded", partial(encode_segments, self.out.place), mode, name="encoded_as")

    def _add(
        self, rows: list[Row], stage: str, make: Callable, settings: Any, *weights: Any, name: str | None = None
    ) -> None:
        """Adds to rows what a stage makes of them: columns, or one of that name. What fails is dropped by reason.

        make: gives what does the work. settings, weights: what else it depends on.
        """
        of_group: dict[str, list[Row]] = {}
        for row in _kept(rows):
            of_group.setdefault(f"{row['source']}\0{row['shot']}", []).append(row)
        units, about = {}, [to_dict(settings), *map(_contents, weights)]
        for group, members in of_group.items():
            file = self.files[members[0]["source"]].path
            parts = [{key: row.get(key) for key in SEEN} for row in members]
            if stage == "clip":
                parts = [{**part, "caption": row["caption"][0]} for part, row in zip(parts, members, strict=True)]
            key = key_of(VERSION, stage, members[0]["source"], _state(file), about, parts)
            units[group] = (key, {"file": file, "segments": parts})
        made = self._made(stage, partial(_guarded, make), units, network=stage != "encoded")
        for group, members in of_group.items():
            found = made[group]
            for n, row in enumerate(members):
                if isinstance(found, dict):
                    row["dropped"] = found["fault"]
                else:
                    row.update({name: found[n]} if name else found[n])

    def _made(
        self, stage: str, make: Callable, units: Mapping[str, tuple[str, Any]], network: bool = False
    ) -> dict[str, Any]:
        """What the units of a stage become, by their names: from its journal, or made now."""
        if not units:
            return {}
        crashed = {}  # is not noted, and so tried again by the next start: the cause may have been the machine's
        with Journal(self.out.journal(stage)) as journal:
            wanted = {key: unit for key, unit in units.values() if not self._whole(journal, stage, key)}
            if wanted:
                with phase(f"curation, {stage}", len(wanted)) as advance:
                    for key, made in self.workers.map(make, wanted.items(), network=network):
                        if made == {"fault": CRASHED}:
                            crashed[key] = made
                        else:
                            journal.add(key, made)
                        advance()
                self.out.send_journal(stage)
            return {name: crashed[key] if key in crashed else journal[key] for name, (key, _) in units.items()}

    def _whole(self, journal: Journal, stage: str, key: str) -> bool:
        if key not in journal:
            return False
        made = journal[key]
        return stage != "encoded" or isinstance(made, dict) or all(map(self.out.holds, made))


def _kept(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not row["dropped"]]


def _ranked(rows: Iterable[Row]) -> tuple[list[Row], list[int]]:
    """(those that stay, the ones to keep before the others; a number of each one's shot)"""

    def rank(row: Row) -> tuple:
        area = row["height"] * row["width"] * (1 - row["border"])
        return -area, -row["seconds"], row["source"], row["first"]

    kept = sorted(_kept(rows), key=rank)
    numbers = {at: n for n, at in enumerate(dict.fromkeys((row["source"], row["shot"]) for row in kept))}
    return kept, [numbers[row["source"], row["shot"]] for row in kept]


def _drop_same(kept: list[Row], same: list[int]) -> None:
    for n, first in enumerate(same):
        if first != n:
            kept[n]["dropped"] = "duplicate"
            kept[n]["duplicate_of"], kept[n]["duplicate_start"] = kept[first]["source"], kept[first]["start"]


def _state(path: str) -> list[int] | None:
    """Size and date: what says that a file is still the same. None where it is not there; reading it says why."""
    try:
        found = status(path) if is_plain(path) else patiently(partial(status, path), path, believed=True)
    except (ClipError, OSError):
        return None
    return [found.st_size, found.st_mtime_ns]


def _contents(place: Any) -> list[Any] | None:
    """Of a file, or a folder, of weights: as `_state` knows its files. None where it is neither, as a hub's name."""
    if place is not None and os.path.isfile(place):
        return [_state(str(place))]
    if place is None or not os.path.isdir(place):
        return None
    found = sorted(str(path) for path in Path(place).rglob("*") if path.is_file())
    return [[os.path.relpath(path, place), _state(path)] for path in found]


# ------------------------------------------------------------------------------------- what workers do, by its settings


def _looker(shots: Any) -> Callable[[Row], Row]:
    def look(unit: Row) -> Row:
        made = cut(probed(unit), shots)
        return {name: value for name, value in made.items() if name not in ("file", "source")}

    return partial(_faulty, look)


def _measurer(area: int) -> Callable[[Row], list[Row]]:
    return partial(_faulty, lambda unit: measuring.measured(unit, unit["segments"], area))


def _guarded(make: Callable[[], Callable[[Row], Any]]) -> Callable[[Row], Any]:
    return partial(_faulty, make())


def _faulty(work: Callable[[Row], Any], unit: Row) -> Any:
    """What the work makes of a unit, or {"fault": reason} of a file that is at fault; storage is waited for."""
    try:
        return patiently(lambda: work(unit), unit["file"])
    except ClipError as error:
        return {"fault": error.reason}
