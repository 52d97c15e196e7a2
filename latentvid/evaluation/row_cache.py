"""Rows of the clips of a set, kept on disk in chunks, so that a run that was stopped, or a second one, reads them.

A chunk is `CHUNK` clips in a row of one extractor: a safetensors file, named after all that its rows depend on. Chunks
do not depend on the number of processes, which take turns at them.
Axes: K clips of a chunk, n rows of a clip, N rows of all, D columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..errors import ClipError, UserError
from ..files import written_whole
from ..progress import phase
from .clip_folder import Item, Skipped
from .rows import Extractor, rows_of
from .summary import numbered

CHUNK = 16
LAYOUT = 2  # of the files: one more where they change


@dataclass
class Found:
    """Rows [n,D] of each clip that has some, and which clips have none and why."""

    rows: list[Tensor] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def files(self) -> list[int]:
        """The file of each clip that has rows, by number."""
        return numbered([item.excerpt.path for item in self.items])


@dataclass(frozen=True)
class RowCache:
    """Rows under `folder`, for one set of clips and extractors by name."""

    folder: Path
    items: Sequence[Item]
    extractors: Mapping[str, Extractor]

    def missing(self) -> list[int]:
        """Where the chunks begin that are not there yet, or not of all extractors."""
        return [start for start in range(0, len(self.items), CHUNK) if self._files(self._clips(start))]

    def fill(self, chunks: Sequence[int], *, label: str = "rows", quiet: bool = False) -> None:
        """Computes what is not there yet of these chunks, some of those that were `missing`.

        A bar says how many clips are done and left; where there is no terminal, a line every 30 seconds does.
        """
        total = sum(len(self._clips(start)) for start in chunks)
        with ExitStack() as shown:
            bar = shown.enter_context(tqdm(desc=label, unit="clip", total=total, disable=True if quiet else None))
            said = shown.enter_context(phase(label, total)) if bar.disable and not quiet else _nothing
            for start in chunks:
                self._compute(self._clips(start), lambda: (bar.update(), said()))

    def _clips(self, start: int) -> Sequence[Item]:
        return self.items[start : start + CHUNK]

    def _files(self, clips: Sequence[Item]) -> dict[str, Path]:
        """Of the extractors that have none yet."""
        return {name: file for name in self.extractors if not (file := self.file(name, clips)).exists()}

    def file(self, name: str, clips: Sequence[Item]) -> Path:
        extractor = self.extractors[name]
        depends = [LAYOUT, extractor.name, extractor.fingerprint, [clip.key(extractor.needs) for clip in clips]]
        digest = hashlib.blake2b(json.dumps(depends).encode(), digest_size=16).hexdigest()
        return self.folder / extractor.name / f"{digest}.safetensors"

    def _compute(self, clips: Sequence[Item], done: Callable[[], Any]) -> None:
        missing = self._files(clips)
        rows: dict[str, list[Tensor]] = {name: [] for name in missing}
        counts: dict[str, list[int]] = {name: [] for name in missing}
        reasons: dict[str, dict[int, str]] = {name: {} for name in missing}
        for k, item in enumerate(clips):
            for name, found in self._rows(item, missing).items():
                if isinstance(found, str):
                    reasons[name][k] = found
                    counts[name].append(0)
                else:
                    rows[name].append(found.contiguous())
                    counts[name].append(len(found))
            done()
        for name, file in missing.items():
            content = {"counts": torch.tensor(counts[name])}
            if rows[name]:
                content["rows"] = torch.cat(rows[name])
            with written_whole(file) as beside:
                save_file(content, beside, metadata={"reasons": json.dumps(reasons[name])})

    def _rows(self, item: Item, names: Mapping[str, Path]) -> dict[str, Tensor | str]:
        """By extractor: the clip's rows, or why there are none."""
        found: dict[str, Tensor | str] = {}
        for name in names:
            for need in sorted(self.extractors[name].needs):
                if getattr(item, need) is None:
                    found[name] = f"it has no {need}"
        wanted = {name: self.extractors[name] for name in names if name not in found}
        if not wanted:
            return found
        try:
            clip = item.read(with_pair=any("pair" in extractor.needs for extractor in wanted.values()))
        except ClipError as error:
            return found | dict.fromkeys(wanted, _reason(error, item))
        rows = rows_of(clip, wanted)
        return found | {n: _reason(r, item) if isinstance(r, ClipError) else r for n, r in rows.items()}

    def read(self, name: str) -> Found:
        """What `fill` left, of all chunks, in the order of the clips. Raises UserError where some are not there."""
        found = Found()
        for start in range(0, len(self.items), CHUNK):
            clips = self._clips(start)
            path = self.file(name, clips)
            if not path.exists():
                raise UserError(f"clips of {clips[0].label} and after were changed while they were scored: run again")
            try:
                with safe_open(path, "pt") as file:
                    counts = file.get_tensor("counts").tolist()
                    rows = iter(file.get_tensor("rows").split([n for n in counts if n]) if any(counts) else ())
                    reasons = json.loads(file.metadata()["reasons"])
            except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"{path} is damaged ({error}): remove it, and run again") from None
            for k, (clip, count) in enumerate(zip(clips, counts, strict=True)):
                if count:
                    found.rows.append(next(rows))
                    found.items.append(clip)
                else:
                    found.skipped.append(Skipped(clip.label, name, reasons[str(k)]))
        return found


def _nothing() -> None:
    """In the place of a line that says how far it is."""


def _reason(error: ClipError, item: Item) -> str:
    """Without the clip's own name, so that like reasons can be counted; with that of its pair."""
    own = error.path in (str(item.excerpt.path), item.label)
    return f"{error.reason}: {str(error).removeprefix(f'{error.path}: ') if own else error}"
