"""Edits of clips by several methods, scored against the clips: one table a method, and one of them all.

python -m latentvid.evaluation edit CLIPS EDITED [EDITED ...] [--masks MASKS] [--captions FILE] [--out DIR]
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...data.video.reading import probe, read_frames
from ...errors import UserError
from ...files import check_outputs, write_whole
from ...tables import markdown_table, text_table
from ...words import counted
from ...world import usable_device
from ..clip_folder import Files, list_files
from ..intervals import by_file, spread
from .measures import Edited, Measure, open_measures

JSON, TABLE = "edits.json", "edits.md"


@dataclass(frozen=True, kw_only=True)
class EditsConfig:
    """Arguments of the command. edited: a folder a method, with a clip for each of those in `clips`, of the same name
    whatever its ending. masks: a folder of pictures or videos of the same names, white where the change was asked for.
    captions, source_captions: tables of what the edits are to show, and of what the clips showed; None: those beside
    the edits, and beside the clips. measures: MODULE:NAME of further ones."""

    clips: Path
    edited: Sequence[Path]
    masks: Path | None = None
    captions: Path | None = None
    source_captions: Path | None = None
    measures: Sequence[str] = ()
    weights: Path | None = None
    device: str | None = None
    out: Path = Path("edits")


@dataclass
class Method:
    """values: of each measure, a number a clip."""

    name: str
    better: Mapping[str, str]
    values: dict[str, list[float]] = field(default_factory=dict)

    def mean(self, name: str) -> float:
        return float(torch.tensor(self.values[name], dtype=torch.float64).mean())

    def interval(self, name: str) -> tuple[float, float] | None:
        """Of 95 %; None of one clip."""
        each = torch.tensor(self.values[name], dtype=torch.float64)
        if len(each) < 2:
            return None
        return spread([by_file((each - each.mean()) / len(each), list(range(len(each))))]).around(float(each.mean()))

    def rows(self) -> list[tuple[str, ...]]:
        """measure, mean, interval, clips, which is better"""
        found = []
        for name, values in self.values.items():
            interval = self.interval(name)
            shown = "" if interval is None else f"{_short(interval[0])} to {_short(interval[1])}"
            found.append((name, _short(self.mean(name)), shown, str(len(values)), self.better[name]))
        return found


HEAD = ("measure", "mean", "95 % interval", "clips", "better")


@dataclass(frozen=True)
class ScoredEdits:
    methods: Sequence[Method]
    left_out: Mapping[str, str]
    masked: bool

    def as_dict(self) -> dict[str, Any]:
        methods = {
            m.name: {k: {"mean": m.mean(k), "interval": m.interval(k), "clips": v} for k, v in m.values.items()}
            for m in self.methods
        }
        return {"methods": methods, "outside_of_masks": self.masked, "left_out": dict(self.left_out)}

    def summary(self) -> list[tuple[str, ...]]:
        """A row a method."""
        names = list(dict.fromkeys(name for m in self.methods for name in m.values))
        rows = [(m.name, *(_short(m.mean(n)) if n in m.values else "" for n in names)) for m in self.methods]
        return [("method", *names), *rows]

    @property
    def remarks(self) -> list[str]:
        where = "outside of the masks" if self.masked else "over whole frames: there are no masks"
        return [f"psnr and lpips are {where}", *(f"{name} left out: {why}" for name, why in self.left_out.items())]

    def text(self) -> str:
        tables = [f"{m.name}\n{text_table([HEAD, *m.rows()])}" for m in self.methods]
        return "\n\n".join([*tables, text_table(self.summary(), right=True), "\n".join(self.remarks)])

    def markdown(self) -> str:
        head, *rows = self.summary()
        tables = [f"## {m.name}\n\n{markdown_table(HEAD, m.rows())}" for m in self.methods]
        parts = ["# Edits", markdown_table(head, rows), *tables, "\n".join(f"- {said}" for said in self.remarks)]
        return "\n\n".join(parts) + "\n"


def _short(number: float) -> str:
    return f"{number:.4g}"


def score_edits(config: EditsConfig) -> ScoredEdits:
    """Writes edits.json and edits.md to the folder `out`. Raises UserError for folders that do not fit together, and
    for edits that are not as long and large as their clips."""
    check_outputs(config.out, (JSON, TABLE))
    names = [path.name or str(path) for path in config.edited]
    if len(set(names)) < len(names):
        raise UserError(f"{', '.join(map(str, config.edited))}: methods are named by their folders: give other names")
    sources = by_stem(list_files(config.clips, config.source_captions))
    edited = [by_stem(list_files(path, config.captions)) for path in config.edited]
    masks = {} if config.masks is None else by_stem(list_files(config.masks))
    for folder, found in zip(config.edited, edited, strict=True):
        check_names(config.clips, sources, folder, found)
    if config.masks is not None:
        check_names(config.clips, sources, config.masks, masks, masks=True)
    measures, left_out = open_measures(config.weights, usable_device(config.device), config.measures)
    better = {name: way for measure in measures for name, way in measure.names.items()}
    methods = [Method(name, better) for name in names]
    for stem, (source, text) in tqdm(sorted(sources.items()), desc="clips", unit="clip", disable=None):
        clip = read_frames(source)
        mask = read_mask(masks[stem][0], clip, source) if stem in masks else None
        for method, found in zip(methods, edited, strict=True):
            path, target = found[stem]
            _add(method, measures, Edited(clip, read_like(path, clip, source), mask, text, target))
    scored = ScoredEdits(methods, left_out, config.masks is not None)
    write_whole(config.out / JSON, json.dumps(scored.as_dict(), indent=1) + "\n")
    write_whole(config.out / TABLE, scored.markdown())
    return scored


def _add(method: Method, measures: Sequence[Measure], each: Edited) -> None:
    for measure in measures:
        for name, value in measure.of(each).items():
            if math.isfinite(value):
                method.values.setdefault(name, []).append(value)


def by_stem(files: Files) -> dict[str, tuple[Path, str | None]]:
    """Files and captions by their names without ending. Raises UserError where two have one."""
    found: dict[str, tuple[Path, str | None]] = {}
    for name, path in files.paths.items():
        stem = os.path.splitext(name)[0]
        if stem in found:
            raise UserError(f"{path} and {found[stem][0]} have one name: remove one of them")
        found[stem] = path, files.captions.get(name)
    return found


def check_names(clips: Path, sources: Mapping, folder: Path, found: Mapping, masks: bool = False) -> None:
    """Raises UserError where a name is in one folder alone."""
    for where, here, elsewhere, there in ((clips, sources, folder, found), (folder, found, clips, sources)):
        if missing := sorted(here.keys() - there.keys()):
            what = "mask" if masks else "edit"
            raise UserError(
                f"{elsewhere} lacks {counted(len(missing), 'clip')} of {where} (such as {missing[0]}): "
                f"give one {what} for "
                "each clip, under its name"
            )


def read_like(path: Path, clip: Tensor, source: Path) -> Tensor:
    """An edit, uint8 [F,H,W,3] as its clip. Raises UserError for another length or size."""
    made = read_frames(path)
    if made.shape != clip.shape:
        ours, theirs = ("{} of {} x {}".format(counted(len(each), "frame"), *each.shape[1:3]) for each in (made, clip))
        raise UserError(f"{path} has {ours} pixels, {source} {theirs}: an edit must be as long and large as its clip")
    return made


def read_mask(path: Path, clip: Tensor, source: Path) -> Tensor:
    """bool [F,H,W]; that of a picture is of all frames. Raises UserError for another length or size."""
    count = probe(path).frames
    white = read_frames(path).float().mean(-1) >= 128
    if white.shape[1:] != clip.shape[1:3] or count not in (1, len(clip)):
        raise UserError(
            f"mask {path} has {counted(count, 'frame')} of {white.shape[1]} x {white.shape[2]} pixels, "
            f"{source} {len(clip)} of "
            f"{clip.shape[1]} x {clip.shape[2]}: give a picture of that size, or a frame for each"
        )
    return white.expand(len(clip), -1, -1)
