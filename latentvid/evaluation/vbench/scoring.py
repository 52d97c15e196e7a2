"""A folder of clips scored by VBench's dimensions, over whole clips, in its results' layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState

from ...data.video.reading import probe
from ...errors import ClipError, UserError
from ...files import check_writable, write_whole
from ...tables import text_table
from ..clip_folder import Item, Skipped, list_files
from ..footage import Excerpt
from ..mean_score import MeanScore
from ..metrics import open_metrics
from ..row_cache import Found, RowCache
from .prompts import Prompt, clips_of
from .scores import BY_FRAME, DIMENSIONS

MODULE = "latentvid.evaluation.vbench.scores"
Results = dict[str, list[Any]]  # by dimension: the score, and of each clip its path and score


@dataclass
class Benchmarked:
    """results: as VBench's file has them. left_out: why a dimension is not there. skipped: clips that are in none."""

    results: Results = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def score_folder(
    clips: Path, prompts: Sequence[Prompt], weights: Path | None, dimensions: Sequence[str] | None, cache: Path
) -> Benchmarked:
    """Every clip of a prompt by the dimensions that the prompt is meant for (of a list that does not say: by all).

    dimensions: by name; None: all of the prompts' whose networks are available. cache: folder of the rows.
    Raises UserError where one that is named is not VBench's, cannot be had, or has no clip.
    """
    if dimensions is not None and (unknown := [name for name in dimensions if name not in DIMENSIONS]):
        raise UserError(f"there is no dimension {unknown[0]!r} here: there are {', '.join(DIMENSIONS)}")
    files = list_files(clips)
    of_prompt = clips_of(prompts, files.paths, files.captions)
    check_writable(cache, "give another --out")
    found = Benchmarked(skipped=list(files.skipped))
    items = _items(of_prompt, files.paths, found.skipped)
    asked = {name for prompt in prompts for name in prompt.dimensions}
    for name, score in DIMENSIONS.items():
        meant = {prompt.text for prompt in prompts if not prompt.dimensions or name in prompt.dimensions}
        mine = [item for item in items if item.caption in meant]
        try:
            if dimensions is not None and name not in dimensions:
                continue
            if not mine:
                raise UserError("no clip is of a prompt that is meant for it")
            metrics = open_metrics([f"{MODULE}:{name}"], weights, PartialState().device)
            rows = RowCache(cache, mine, metrics.extractors)
            rows.fill(rows.missing(), label=name)
            found.results[name] = _result(score, rows.read(score.extractor), found.skipped)
        except UserError as error:
            why = str(error).removeprefix(f"{name}: ")
            if dimensions is not None:
                raise UserError(f"{name}: {why}") from error
            found.left_out[name] = why
    for name in sorted(asked - DIMENSIONS.keys()):
        found.left_out[name] = "its networks are not had here: score it with the package vbench"
    return found


def _items(of_prompt: dict[str, list[str]], paths: dict[str, Path], skipped: list[Skipped]) -> list[Item]:
    """Whole clips, with their prompts."""
    items = []
    for text, names in of_prompt.items():
        for name in names:
            try:
                info = probe(paths[name])
            except ClipError as error:
                skipped.append(Skipped(str(paths[name]), None, str(error).removeprefix(f"{paths[name]}: ")))
                continue
            whole = Excerpt(paths[name], 0, info.frames, info.height, info.width, info.fps)
            items.append(Item(name, whole, text))
    return items


def _result(score: MeanScore, found: Found, skipped: list[Skipped]) -> list[Any]:
    skipped += found.skipped
    if not found.rows:
        raise UserError(f"no clip can be used: {found.skipped[0].reason}")
    each = [score.of_clip(rows) for rows in found.rows]
    total = score.of_clip(torch.cat(found.rows)) if score.name in BY_FRAME else fmean(each)
    said = [bool(value) for value in each] if score.name == "dynamic_degree" else each
    paths = [str(item.excerpt.path) for item in found.items]
    return [total, [{"video_path": path, "video_results": value} for path, value in zip(paths, said, strict=True)]]


def write_results(results: Results, out: Path, name: str) -> Path:
    """OUT/NAME_eval_results.json, as VBench writes and its leaderboard's scripts read it."""
    file = out / f"{name}_eval_results.json"
    write_whole(file, json.dumps(results, indent=4, ensure_ascii=False, allow_nan=False) + "\n")
    return file


def text_of(found: Benchmarked) -> str:
    rows = [(name, f"{100 * total:.2f} %", f"{len(clips)}") for name, (total, clips) in found.results.items()]
    lines = [text_table([("dimension", "score", "clips"), *rows])]
    lines += [f"left out: {name}: {why}" for name, why in found.left_out.items()]
    lines += [f"skipped: {fault.file}: {fault.reason}" for fault in found.skipped]
    return "\n".join(lines)
