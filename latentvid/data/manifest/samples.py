"""A manifest's rows in memory: compact columns instead of a million objects."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .columns import Column, Strings


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip or image: absolute path, caption, number of frames, frames per second (0: image), size in pixels."""

    path: str
    caption: str
    frames: int
    fps: float
    height: int
    width: int


_NUMBERS = ("frames", "fps", "height", "width", "row")


@dataclass(frozen=True, eq=False, repr=False)
class Samples(Column[Sample]):
    """Samples of one or several manifests; sample i came from manifest `source[i]`, whose folder is `folders[source]`.

    paths (relative to the folder, or absolute), captions: [N] texts. source: uint16 [N].
    frames, height, width: int32 [N]. fps: float64 [N]. row: int32 [N], in the manifest; 0 where there is none.
    """

    folders: tuple[str, ...]
    source: np.ndarray
    paths: Strings
    captions: Strings
    frames: np.ndarray
    fps: np.ndarray
    height: np.ndarray
    width: np.ndarray
    row: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0] + [len(part.folders) for part in parts])
        return cls(
            tuple(folder for part in parts for folder in part.folders),
            np.concatenate([part.source + np.uint16(start) for part, start in zip(parts, starts, strict=False)]),
            Strings.joined([part.paths for part in parts]),
            Strings.joined([part.captions for part in parts]),
            *(np.concatenate([getattr(p, name) for p in parts]) for name in _NUMBERS),
        )

    def where(self, mask: np.ndarray) -> Samples:
        """The samples where the bool [N] mask is true."""
        if mask.all():
            return self
        texts = (self.paths.where(mask), self.captions.where(mask))
        return Samples(
            self.folders,
            self.source[mask],
            *texts,
            *(getattr(self, name)[mask] for name in _NUMBERS),
        )

    def __len__(self) -> int:
        return len(self.frames)

    def path(self, i: int) -> str:
        return os.path.join(self.folders[self.source[i]], self.paths[i])

    def name(self, i: int) -> str:
        """The path and, where there is one, the row: where to mend it."""
        return self.path(i) + (f", row {self.row[i]}" if self.row[i] else "")

    @property
    def is_image(self) -> np.ndarray:
        """bool [N]"""
        return (self.fps == 0) & (self.frames == 1)

    def _value(self, i: int) -> Sample:
        frames, fps, height, width = (c[i].item() for c in (self.frames, self.fps, self.height, self.width))
        return Sample(self.path(i), self.captions[i], frames, fps, height, width)


class Dropped(Column[tuple[str, str]]):
    """(path or line, reason) of what cannot be used."""

    def __init__(self, rows: Iterable[tuple[str, str]] = ()) -> None:
        self._paths, self._codes = Strings(), array("H")
        self._reasons: dict[str, int] = {}  # the code of each
        for path, reason in rows:
            self.add(path, reason)

    def add(self, path: str, reason: str) -> None:
        self._paths.append(path)
        self._codes.append(self._reasons.setdefault(reason, len(self._reasons)))

    def __len__(self) -> int:
        return len(self._codes)

    def _value(self, i: int) -> tuple[str, str]:
        return self._paths[i], list(self._reasons)[self._codes[i]]


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


class Rows:
    """Samples as they are collected; a frames, height or width of 0 and an fps of NaN are not known yet."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.paths, self.captions = Strings(), Strings()
        self.facts = tuple(map(array, "idii"))  # frames, fps, height, width
        self.row = array("i")

    def add(self, path: str, caption: str, *facts: float, row: int = 0) -> None:
        self.paths.append(path)
        self.captions.append(caption)
        for column, value in zip(self.facts, facts, strict=True):
            column.append(value)
        self.row.append(row)

    def __len__(self) -> int:
        return len(self.paths)

    def samples(self) -> Samples:
        frames, fps, height, width, row = map(np.array, (*self.facts, self.row))
        source = np.zeros(len(self), np.uint16)
        return Samples((self.folder,), source, self.paths, self.captions, frames, fps, height, width, row)
