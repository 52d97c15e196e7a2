"""The page of a data set: what a curation made (docs/curation.md), or any manifest."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import torch

from ..charts import Line, chart
from ..config.parsing import load_config
from ..curation.columns import COLUMNS
from ..curation.expressions import Bound, Filter
from ..curation.settings import Curation
from ..curation.writing import SEGMENTS, SETTINGS, SUMMARY, TRAIN, VALIDATION
from ..data.manifest.manifest import Manifest, read_manifest
from ..data.manifest.samples import dropped_by_reason
from ..data.manifest.tables import READERS
from ..data.transforms import fit
from ..data.video.reading import read_windows
from ..data.video.view import View
from ..data.windows import REASONS, Transform, Window, cut_windows
from ..errors import ClipError, UserError
from ..evaluation.sheet import Row, draw_sheet
from ..files import read_json
from ..page import Page, note, table
from ..places import join
from ..words import counted

BINS = 40
NEAR = 4  # segments on each side of a threshold that are shown
FRAMES, HEIGHT = 4, 72  # of each, in a sheet
WINDOWS = 8  # that are shown as training sees them
COMMONEST = 40  # words
SKIPPED = {"start", "end", "shot"}  # numbers that say nothing by their distribution


@dataclass(frozen=True)
class Dataset:
    """columns: of all segments, or of a manifest's rows: path, caption, numbers and texts. dropped: why each is, or
    empty. settings: of the curation; None of a plain manifest. manifests: what training reads."""

    place: Path
    columns: pyarrow.Table
    settings: Curation | None
    summary: dict[str, Any] | None
    manifests: tuple[Manifest, ...] = ()
    notes: tuple[str, ...] = ()
    sheets: Path = field(default_factory=Path)

    def __len__(self) -> int:
        return len(self.columns)

    def numbers(self, name: str) -> np.ndarray:
        """float64 [N]; NaN where it is not known."""
        values = pyarrow.compute.cast(self.columns[name], pyarrow.float64())
        return values.to_numpy(zero_copy_only=False).astype(float)

    @cached_property
    def kept(self) -> np.ndarray:
        """bool [N]"""
        if "dropped" not in self.columns.column_names:
            return np.ones(len(self), bool)
        return np.array([not reason for reason in self.columns["dropped"].to_pylist()], bool)

    def row(self, i: int) -> dict[str, Any]:
        return self.columns.slice(int(i), 1).to_pylist()[0]


def is_dataset(place: Path) -> bool:
    """A curation's folder, or a file that may be a manifest."""
    return (place / SEGMENTS).is_file() or (place.is_file() and place.suffix.lower() in READERS)


def read_dataset(place: Path, sheets: Path) -> Dataset:
    """Raises UserError where it is none."""
    if place.is_file():
        manifest = read_manifest(place, extra=[*COLUMNS])
        return Dataset(place, _table_of(manifest), None, None, (manifest,), sheets=sheets)
    if not (place / SEGMENTS).is_file():
        raise UserError(f"{place} holds no {SEGMENTS}: give a folder that latentvid.curation wrote, or a manifest")
    try:
        columns = pyarrow.parquet.read_table(place / SEGMENTS)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{place / SEGMENTS} cannot be read ({error}): start the curation again") from error
    manifests, notes = [], []
    for name in (TRAIN, VALIDATION):
        try:
            manifests.append(read_manifest(place / name))
        except UserError as error:
            notes.append(f"{name}: {str(error).splitlines()[0]}")
    settings, summary = load_config(Curation, place / SETTINGS), read_json(place / SUMMARY, place)
    return Dataset(place, columns, settings, summary, tuple(manifests), tuple(notes), sheets)


def _table_of(manifest: Manifest) -> pyarrow.Table:
    samples = manifest.samples
    columns: dict[str, Any] = {
        "path": [samples.path(i) for i in range(len(samples))],
        "caption": [samples.captions(i)[0] for i in range(len(samples))],
        "start": [samples.segment(i)[0] for i in range(len(samples))],
        **{name: getattr(samples, name) for name in ("frames", "fps", "height", "width")},
    }
    rate = np.where(samples.fps > 0, samples.fps, np.inf)
    whole = samples.frames / rate
    begin = np.zeros(len(samples)) if samples.start is None else samples.start
    columns["seconds"] = whole if samples.start is None else np.clip(np.minimum(samples.end, whole) - begin, 0, None)
    known = {name: values for name, values in manifest.extra.items() if name not in columns}
    columns |= {name: values for name, values in known.items() if any(value is not None for value in values)}
    columns["words"] = [len(text.split()) for text in columns["caption"]]
    return pyarrow.table(columns)


def dataset_sections(page: Page, data: Dataset, transform: Transform) -> list[tuple[str, Callable[[], str]]]:
    return [
        ("Summary", partial(_summary, data)),
        ("Dropped", partial(_dropped, data)),
        ("Measures", partial(_measures, data)),
        ("At the thresholds", partial(_thresholds, page, data)),
        ("Sizes and rates", partial(_sizes, data)),
        ("Captions", partial(_captions, data)),
        ("What training sees", partial(_windows, page, data, transform)),
    ]


def _summary(data: Dataset) -> str:
    seconds, kept = data.numbers("seconds"), data.kept
    rows = [
        ("segments", f"{len(data):,}", f"{kept.sum():,}"),
        ("hours", f"{np.nansum(seconds) / 3600:,.3f}", f"{np.nansum(seconds[kept]) / 3600:,.3f}"),
    ]
    parts = [table(("", "all", "kept"), rows), *map(note, data.notes)]
    if data.summary is not None:
        rows = []
        for name in ("train", "validation"):
            side = data.summary[name]
            rows.append((name, f"{side['segments']:,}", f"{side['seconds'] / 3600:,.3f}", f"{side['sources']:,}"))
        parts.append(table(("", "segments", "hours", "files"), rows))
    for manifest in data.manifests:
        parts += [note(line) for line in dropped_by_reason(manifest.dropped)]
    return "".join(parts)


def _dropped(data: Dataset) -> str:
    if data.summary is None:
        return ""
    found = data.summary
    rows = [(escape(reason), f"{n:,}", f"{s:,.1f}", "dropped") for reason, (n, s) in found["dropped"].items()]
    rows += [(escape(reason), f"{n:,}", f"{s:,.1f}", "in no segment") for reason, (n, s) in found["left_out"].items()]
    rows += [(escape(reason), f"{n:,}", "", "bad file") for reason, n in found["bad"].items()]
    return table(("reason", "number", "seconds", ""), rows) or note("Nothing was dropped.")


def _filters(data: Dataset) -> list[Filter]:
    return [] if data.settings is None else data.settings.parsed


def _measures(data: Dataset) -> str:
    columns = COLUMNS if data.settings is None else data.settings.columns
    bounds = [bound for each in _filters(data) for bound in each.bounds()]
    made = []
    for name, column in columns.items():
        if column.kind != "number" or name in SKIPPED or name not in data.columns.column_names:
            continue
        marks = [(b.value, f"{b.sign} {b.value:g}") for b in bounds if b.column == name]
        made.append(histogram(f"{name}: {column.meaning}", name, data.numbers(name), data.kept, marks))
    return "".join(made)


def histogram(
    title: str, label: str, values: np.ndarray, kept: np.ndarray, marks: Sequence[tuple[float, str]] = ()
) -> str:
    """How many segments have which value: of all, and of those that are kept. marks: thresholds, and their names."""
    some = np.isfinite(values)
    if not some.any():
        return ""
    edges = np.histogram_bin_edges(values[some], BINS)
    middles = (edges[:-1] + edges[1:]) / 2
    all_, stay = (np.histogram(values[mask], edges)[0] for mask in (some, some & kept))
    lines = [
        Line("all", middles, all_.astype(float), "var(--c1)", kind="raw"),
        Line("kept", middles, stay.astype(float), kind="mean"),
    ]
    return chart(title, lines, scale="zero", x_label=label, marks=marks, hold_x=[at for at, _ in marks])


def _thresholds(page: Page, data: Dataset) -> str:
    """What is just kept, and just dropped, of each threshold."""
    parts = []
    for each in _filters(data):
        for bound in each.bounds():
            kept, dropped = nearest_rows(data, each, bound)
            for title, rows in (("just kept", kept), ("just dropped", dropped)):
                if len(rows):
                    about = f"{bound.column} {bound.sign} {bound.value:g}, {title}"
                    parts.append(f"<h3>{escape(about)}</h3>" + _sheet(page, data, rows, bound.column))
    return "".join(parts) or (note("No filter has a threshold.") if data.settings is not None else "")


def nearest_rows(data: Dataset, each: Filter, bound: Bound) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the kept segments, and of those that this filter dropped, whose value is nearest to the threshold."""
    far = np.abs(data.numbers(bound.column) - bound.value)
    reasons = np.array(data.columns["dropped"].to_pylist(), object)
    found = []
    for mask in (data.kept, reasons == each.text):
        at = np.flatnonzero(mask & np.isfinite(far))
        found.append(at[np.argsort(far[at], kind="stable")][:NEAR])
    return found[0], found[1]


def _sheet(page: Page, data: Dataset, numbers: np.ndarray, column: str) -> str:
    rows = []
    for i in numbers:
        row = data.row(i)
        try:
            pictures = _frames(data, row)
        except ClipError as error:
            rows.append(Row([torch.zeros(1, HEIGHT, HEIGHT, 3, dtype=torch.uint8)], error.reason))
            continue
        rows.append(Row([pictures], f"{column} {row[column]:.4g}\n{row['stem'][-24:]} at {row['start'] or 0:.1f} s"))
    return _picture(page, data, rows)


def _picture(page: Page, data: Dataset, rows: Sequence[Row]) -> str:
    file = data.sheets / f"sheet-{page.size}.png"
    draw_sheet(rows, file, columns=FRAMES, zoom=1)
    source = page.offer(file)
    return note("left out: the page is full") if source is None else f'<img class="sheet" src="{source}" alt="frames">'


def _frames(data: Dataset, row: dict[str, Any]) -> torch.Tensor:
    """uint8 [FRAMES,h,w,3], evenly spaced over a segment."""
    fps, first = row["fps"] or 0.0, round((row["start"] or 0.0) * (row["fps"] or 0.0))
    count = max(1, round(row["seconds"] * fps))
    picks = sorted({first + int((n + 0.5) * count / FRAMES) for n in range(FRAMES)})
    size = HEIGHT, max(1, round(HEIGHT * row["width"] / row["height"]))
    found = read_windows(join(str(data.place), row["path"]), picks, 1, lambda _, pixels: fit(pixels, *size))
    return torch.cat(found)


def _sizes(data: Dataset) -> str:
    kept = data.kept
    sizes = Counter(zip(data.numbers("width")[kept], data.numbers("height")[kept], strict=True))
    rates = Counter(round(rate, 3) for rate in data.numbers("fps")[kept])
    named_rates = Counter({f"{rate:g}" if rate else "image": n for rate, n in rates.items()})
    parts = [
        _counted("width x height", Counter({f"{w:.0f} x {h:.0f}": n for (w, h), n in sizes.items()})),
        _counted("frames a second", named_rates),
    ]
    if data.settings is None:
        parts.append(histogram("seconds", "seconds", data.numbers("seconds"), kept))
    return "".join(parts)


def _counted(what: str, found: Counter[str]) -> str:
    rest = note(f"the commonest of {len(found):,}") if len(found) > 20 else ""
    return table((what, "segments"), [(escape(name), f"{n:,}") for name, n in found.most_common(20)]) + rest


def _captions(data: Dataset) -> str:
    texts = [each for each, stays in zip(data.columns["caption"].to_pylist(), data.kept, strict=True) if stays and each]
    texts = [each if isinstance(each, str) else each[0] for each in texts]
    if not texts:
        return note("No segment that is kept has a caption.")
    words = Counter(word for text in texts for word in text.lower().split())
    alike = Counter(texts)
    common = ", ".join(f"{escape(word)} ({n:,})" for word, n in words.most_common(COMMONEST))
    rows = [(escape(text[:200]), f"{n:,}") for text, n in alike.most_common(10)]
    return (
        f"<p>{len(texts):,} captions, {len(alike):,} different; {len(words):,} different words.</p><p>{common}</p>"
        + table(("commonest captions", "segments"), rows)
    )


def _windows(page: Page, data: Dataset, transform: Transform) -> str:
    """The windows that are cut of the manifests' rows, and the pixels of some, cropped and flipped as they will be."""
    parts = [note(_transform_in_words(transform))]
    for manifest in data.manifests:
        windows, shown = cut_windows(manifest.samples, transform)
        lost = Counter(REASONS[code] for code in shown.reason.tolist() if code)
        parts.append(f"<h3>{escape(Path(manifest.source).name)}</h3>")
        parts += [note(f"{n:,} left out: {reason}") for reason, n in sorted(lost.items())]
        if not len(windows):
            continue
        shapes = {" x ".join(map(str, shape)): n for shape, n in windows.sizes.counts().items()}
        parts.append(_counted("frames x height x width", Counter(shapes)))
        picks = np.unique(np.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).round().astype(int))
        parts.append(_picture(page, data, [_seen(manifest, windows[int(i)], int(i), transform) for i in picks]))
    return "".join(parts)


def _transform_in_words(transform: Transform) -> str:
    area = "native size" if transform.max_area is None else f"at most {transform.max_area:,} pixels"
    crop = "" if transform.crop is None else f", cropped to {transform.crop} x {transform.crop}"
    rate = "" if transform.fps is None else f", at {transform.fps:g} frames a second"
    return (
        f"Windows of up to {counted(transform.max_frames, 'frame')}{rate}, {area}{crop}, sides multiples of "
        f"{transform.spatial_stride}. --max-frames, --max-area, --crop, --fps and the strides change it."
    )


def _seen(manifest: Manifest, window: Window, number: int, transform: Transform) -> Row:
    samples, size = manifest.samples, (window.height, window.width)
    path, rate = samples.path(window.sample), transform.rate(float(samples.fps[window.sample]))
    begin, end = samples.segment(window.sample)
    view = None if rate is None else View(rate, begin, end, transform.fps_slack)
    try:
        (pixels,) = read_windows(path, [window.start], window.frames, lambda _, p: p.clone(), size, view=view)
    except ClipError as error:
        return Row([torch.zeros(1, HEIGHT, HEIGHT, 3, dtype=torch.uint8)], error.reason)
    pixels = transform.augment(0, number, pixels)
    height, width = pixels.shape[1:3]
    text = f"{window.frames} x {height} x {width}\n{samples.captions(window.sample)[0]}"
    small = fit(pixels, HEIGHT, max(1, round(HEIGHT * width / height)))
    return Row([small], text[:120])


def sheets_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="latentvid-report-")


def title_of(data: Dataset) -> tuple[str, str]:
    """(title, lead) of the page."""
    made = "A manifest" if data.settings is None else "A curation: " + (json.dumps(list(data.settings.filters)) or "")
    return f"Data set: {data.place.name}", made
