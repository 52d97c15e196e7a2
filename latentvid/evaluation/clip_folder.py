"""Sets of clips in files: which there are, how each is cut, what caption and what real clip belong to it.

Nothing is decoded here: an `Item` is read when its turn comes.
Axes: F frames, H W height and width in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from tqdm import tqdm

from ..data.manifest.captions import one_line, read_caption
from ..data.manifest.manifest import read_manifest
from ..data.manifest.tables import READERS
from ..errors import ClipError, UserError
from ..words import counted
from .footage import NEAR, Cut, Excerpt, cut_files, find_files
from .rows import Clip

INDEX = "results.jsonl"  # what inference/t2v.py --prompts writes beside its clips
NAMES, TEXTS = ("path", "file", "name", "file_name"), ("caption", "prompt", "text")  # columns of a table of captions


class Skipped(NamedTuple):
    """What is not in a score: a file (or a clip of it), for which extractor (None: for all), and why."""

    file: str
    extractor: str | None
    reason: str


@dataclass(frozen=True)
class Item:
    """A clip in a file. name: of the file, relative to its folder. pair: the real clip that it should equal."""

    name: str
    excerpt: Excerpt
    caption: str | None = None
    pair: Excerpt | None = None

    def read(self, with_pair: bool) -> Clip:
        """Raises ClipError."""
        pair = self.pair.read() if with_pair and self.pair is not None else None
        return Clip(self.excerpt.read(), self.excerpt.fps, self.caption, pair, self.label)

    @property
    def label(self) -> str:
        return f"{self.excerpt.path}, frame {self.excerpt.start}" if self.excerpt.start else str(self.excerpt.path)

    def key(self, needs: frozenset[str]) -> list[Any]:
        """What its rows depend on, for JSON: file, size, time of change, cut; caption and pair where needed."""
        pair = _identity(self.pair) if "pair" in needs and self.pair is not None else None
        return [_identity(self.excerpt), self.caption if "caption" in needs else None, pair]


def _identity(excerpt: Excerpt) -> list[Any]:
    try:
        status = os.stat(excerpt.path)
        file = [os.path.abspath(excerpt.path), status.st_size, status.st_mtime_ns]
    except OSError:  # it went away: reading it will say so
        file = [os.path.abspath(excerpt.path), None, None]
    rate = None if excerpt.rate is None else str(excerpt.rate)
    return [*file, excerpt.start, excerpt.frames, excerpt.height, excerpt.width, rate, excerpt.stride]


@dataclass
class ClipSet:
    """The clips of a source, what cannot be used, and how many files there are."""

    source: Path
    items: list[Item]
    skipped: list[Skipped] = field(default_factory=list)
    files: int = 0

    @property
    def captioned(self) -> bool:
        return any(item.caption is not None for item in self.items)


class Files(NamedTuple):
    """Files by the name that pairs are found by, relative to their folder, with captions as far as there are any."""

    paths: dict[str, Path]
    captions: dict[str, str]
    skipped: list[Skipped]


def list_files(source: Path, captions: Path | None = None) -> Files:
    """source: a folder of videos and images, one file, or a manifest.

    Captions come from the table `captions`; else from the manifest, from results.jsonl in the folder, or from
    NAME.txt beside NAME.mp4. Raises UserError where the source, or a table, is missing or holds nothing.
    """
    if source.suffix.lower() in READERS and source.is_file():
        manifest = read_manifest(source)
        folder = source.absolute().parent
        paths, texts, skipped = {}, {}, [Skipped(path, None, reason) for path, reason in manifest.dropped]
        for sample in manifest.samples:
            name = os.path.relpath(sample.path, folder)
            if name in paths:
                skipped.append(Skipped(sample.path, None, "is in the manifest twice: the first row counts"))
            else:
                paths[name], texts[name] = Path(sample.path), sample.caption
    else:
        found = find_files([source])
        folder = source if source.is_dir() else source.parent
        paths, skipped = {os.path.relpath(path, folder): path for path in found}, []
        texts = {}
        if captions is None:
            texts, unread = _texts_beside(folder, paths)
            skipped += unread
    if captions is not None:
        texts = read_captions(captions, paths)
    return Files(paths, texts, skipped)


def _texts_beside(folder: Path, paths: Mapping[str, Path]) -> tuple[dict[str, str], list[Skipped]]:
    """Captions by name, and the files whose caption cannot be read."""
    if (folder / INDEX).is_file():
        return read_captions(folder / INDEX, paths), []
    found, skipped = {}, []
    for name, path in paths.items():
        try:
            found[name] = read_caption(path.with_suffix(".txt"))
        except ClipError as error:
            if error.reason not in ("no-caption", "empty-caption"):
                skipped.append(Skipped(str(path), "captions", str(error)))
    return found, skipped


def read_captions(table: Path, names: Mapping[str, Path]) -> dict[str, str]:
    """Captions by name, of a .jsonl, .csv or .parquet with a column of `NAMES` and one of `TEXTS`.

    Raises UserError where it cannot be read, or names none of these files.
    """
    if table.suffix.lower() not in READERS or not table.is_file():
        raise UserError(f"captions {table}: give a file that ends in {', '.join(READERS)}")
    found = {}
    try:
        for line, row in READERS[table.suffix.lower()](str(table), (*NAMES, *TEXTS), ()):
            name, text = (next((row[c] for c in columns if row.get(c)), None) for columns in (NAMES, TEXTS))
            if not isinstance(name, str) or not isinstance(text, str):
                columns = f"({', '.join(NAMES)}) and a text ({', '.join(TEXTS)})"
                raise UserError(f"{table}, line {line}: give a name {columns}")
            found[os.path.normpath(name)] = one_line(text)
    except (UnicodeDecodeError, pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{table} cannot be read ({error}): save it as UTF-8 text, or write it again") from error
    if not found.keys() & names.keys():
        raise UserError(
            f"{table} names none of the clips, such as {next(iter(names))}: names are relative to their folder"
        )
    return {name: text for name, text in found.items() if name in names and text}


def list_clips(
    source: Path, cut: Cut, most: int | None = None, captions: Path | None = None, *, quiet: bool = True
) -> ClipSet:
    """The clips of a source (`list_files`), cut by `cut`, at most `most`. Raises UserError where there is none.

    quiet: without a bar of the files that are looked at.
    """
    files = list_files(source, captions)
    with tqdm(desc=f"looking at {source}", unit="file", total=len(files.paths), disable=True if quiet else None) as bar:
        excerpts, skipped = _cut(list(files.paths.values()), cut, most, bar.update)
    names = {path: name for name, path in files.paths.items()}
    items = [Item(names[e.path], e, files.captions.get(names[e.path])) for e in excerpts]
    faults = files.skipped + [Skipped(str(path), None, why.removeprefix(f"{path}: ")) for path, why in skipped]
    if not items:
        raise UserError(
            f"{source} has no clip that can be used: {'; '.join(f'{f.file}: {f.reason}' for f in faults[:3])}"
        )
    return ClipSet(source, items, faults, len(files.paths) + len(files.skipped))


def _cut(
    paths: list[Path], cut: Cut, most: int | None, looked: Callable[[], Any]
) -> tuple[list[Excerpt], list[tuple[Path, str]]]:
    """As `cut_files`, but where there are more files than clips are wanted, files are taken evenly over all."""
    if most is None or len(paths) <= most:
        return cut_files(paths, cut, most, looked)
    first = [paths[(2 * i + 1) * len(paths) // (2 * most)] for i in range(most)]
    spare = iter(sorted(set(paths) - set(first)))  # instead of those that cannot be used
    excerpts, skipped = cut_files(first, cut, most, looked)
    while len(excerpts) < most and (more := list(islice(spare, most - len(excerpts)))):
        found, faults = cut_files(more, cut, most - len(excerpts), looked)
        excerpts, skipped = excerpts + found, skipped + faults
    return sorted(excerpts, key=lambda excerpt: (excerpt.path, excerpt.start)), skipped


def paired(clips: ClipSet, real: Path, cut: Cut, allowed: Collection[str] = ()) -> ClipSet:
    """The clips with the real ones of the same relative name (whatever its ending) as pairs, cut alike.

    cut: what all were cut by; without a size each pair must have its clip's own. allowed: "rate" and "length" may
    differ. `pair` stays None where there is no such file or it cannot be used; the latter are listed.
    Raises UserError where two real files have one name.
    """
    partners: dict[str, Path] = {}
    for name, path in list_files(real).paths.items():
        stem = os.path.splitext(name)[0]
        if stem in partners:
            raise UserError(
                f"{partners[stem]} and {path} have one name but for the ending: keep the one that is the pair"
            )
        partners[stem] = path
    items, skipped = [], list(clips.skipped)
    found: dict[Path, Excerpt | str] = {}
    for item in clips.items:
        path = partners.get(os.path.splitext(item.name)[0])
        if path is not None and path not in found:
            found[path] = _pair(path, item.excerpt, cut, allowed)
            if isinstance(found[path], str):
                skipped.append(Skipped(str(path), "pairs", found[path]))
        pair = found.get(path)
        items.append(replace(item, pair=replace(pair, start=item.excerpt.start)) if isinstance(pair, Excerpt) else item)
    return replace(clips, items=items, skipped=skipped)


def _pair(path: Path, excerpt: Excerpt, cut: Cut, allowed: Collection[str]) -> Excerpt | str:
    """The file's first excerpt, cut as its clip's, or why the file cannot be the pair of this clip."""
    try:
        pair = cut.excerpts(path)[0]
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    found, wanted = (pair.height, pair.width), (excerpt.height, excerpt.width)
    if found != wanted:
        return f"{found[0]} x {found[1]} pixels, but its clip has {wanted[0]} x {wanted[1]}: give a size (--size)"
    if pair.frames != excerpt.frames or ("length" not in allowed and pair.of != excerpt.of):
        return f"{counted(pair.of, 'frame')}, but its clip has {excerpt.of}: say how many are compared (--frames)"
    if "rate" not in allowed and abs(pair.fps - excerpt.fps) > NEAR * excerpt.fps:
        return f"{pair.fps:g} frames a second, but its clip has {excerpt.fps:g}: give a rate (--fps)"
    return pair


def unrelated(items: Sequence[Item]) -> list[Item]:
    """The pairs of these as clips, each with the pair of another file, of the same shape, as its own pair.

    Those are left out to which none can be found: what pairs that have nothing in common would score.
    """
    alike: dict[tuple[int, int, int], list[Item]] = {}
    for item in items:
        if item.pair is not None:
            alike.setdefault((item.pair.frames, item.pair.height, item.pair.width), []).append(item)
    found = []
    for group in alike.values():
        for k, item in enumerate(group):
            others = (group[(k + step) % len(group)].pair for step in range(1, len(group)))
            if (other := next((pair for pair in others if pair.path != item.pair.path), None)) is not None:
                found.append(Item(item.name, item.pair, item.caption, other))
    return found
