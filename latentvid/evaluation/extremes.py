"""Scores of each clip: for scores.json, and as a page of the best and the worst clips by each score.

A clip has no distance of sets or Inception score by itself: what it adds to the set's is its influence, the change of
the score, to first order, were the clip counted once more.

Axes: F frames, H W height and width in pixels.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.transforms import fit
from ..data.video.writing import write_video
from ..errors import ClipError
from ..files import write_whole
from ..page import Page, note
from ..words import counted
from .clip_folder import Item
from .mean_score import MeanScore
from .rows import Score

PAGE = "clips.html"
TALL = 256  # pixels: higher clips are shown smaller
INFLUENCE = "A score of the whole set: by what it would change, to first order, were the clip counted once more."
SMALL = 128  # pixels: narrower clips are shown enlarged, without blur
Values = Mapping[Item, Mapping[str, float]]  # of each clip, by score


def of_each(score: Score, rows: Sequence[Tensor], real: Sequence[Tensor] | None) -> list[float]:
    """The score of each clip by itself, or its influence. real: the rows that a score of sets compares with."""
    if isinstance(score, MeanScore):
        return [score.of_clip(clip) for clip in rows]
    return score.derivatives(rows, real if score.compares == "sets" else None)[0].tolist()


def as_rows(values: Values, scores: Mapping[str, Score], seeds: Mapping[str, int] = {}) -> list[dict[str, Any]]:
    """What scores.json holds: the file, where the clip begins in it, its frames, caption and seed, its own scores, and
    its influence on those of sets. seeds: by the clips' names, as far as they are known."""
    alone = {name for name, score in scores.items() if isinstance(score, MeanScore)}
    return [
        {
            "file": str(item.excerpt.path),
            "start": item.excerpt.start,
            "frames": item.excerpt.frames,
            "caption": item.caption,
            "seed": seeds.get(os.path.normpath(item.name)),
            "scores": {name: value for name, value in found.items() if name in alone},
            "influence": {name: value for name, value in found.items() if name not in alone},
        }
        for item, found in values.items()
    ]


def extremes(values: Values, name: str, count: int, higher_first: bool) -> tuple[list[Item], list[Item]]:
    """The first and the last `count` clips by a score, the outermost first; none is in both."""
    having = [item for item, scores in values.items() if name in scores]
    order = sorted(having, key=lambda item: values[item][name], reverse=higher_first)
    count = min(count, len(order) // 2) or min(1, len(order))
    return order[:count], order[max(count, len(order) - count) :][::-1]


def write_page(path: Path, values: Values, scores: Sequence[Score], count: int, limit: int | None = None) -> None:
    """Writes the page, with the clips in it: for each score `count` of each end. limit: as `Page` has it."""
    page = Page() if limit is None else Page(limit)
    with tempfile.TemporaryDirectory() as folder:
        films = _Films(page, Path(folder))
        shown = [score for score in scores if any(score.name in each for each in values.values())]
        panes = [(score.name, _pane(films, values, score, count)) for score in shown]
    words = '<p class="dim">By score; the arrow keys go from one to the next.</p>' if len(panes) > 1 else ""
    body = words + page.tabs(panes) if panes else note("no clip has a score")
    lead = f"{count} of each end, of {counted(len(values), 'clip')}"
    write_whole(path, page.html("Best and worst clips", lead, [("", [("", body)])], "scores.json has all clips"))


class _Films:
    """Clips as HTML, as far as the page has room."""

    def __init__(self, page: Page, folder: Path) -> None:
        self.page, self.folder = page, folder
        self._files: dict[Item, Path | None] = {}

    def html(self, item: Item) -> str:
        path = self._file(item)
        if path is None:
            return note("cannot be read any more")
        source = self.page.offer(path)
        if source is None:
            return note(f"left out, to hold the page to {self.page.limit / 1e6:,.0f} MB")
        small = " small" if item.excerpt.width < SMALL else ""
        if path.suffix == ".mp4":
            return f'<video class="clip{small}" src="{source}" autoplay loop muted playsinline></video>'
        return f'<img class="clip{small}" src="{source}" alt="{escape(item.name)}">'

    def _file(self, item: Item) -> Path | None:
        if item not in self._files:
            try:
                pixels = item.excerpt.read()
            except ClipError:
                pixels = None
            self._files[item] = None if pixels is None else self._written(pixels, item)
        return self._files[item]

    def _written(self, pixels: Any, item: Item) -> Path:
        height, width = pixels.shape[1:3]
        scale = min(1.0, TALL / height)
        moving = len(pixels) > 1
        step = 2 if moving else 1  # videos have sides of even length
        sides = [max(step, int(scale * side) // step * step) for side in (height, width)]
        path = self.folder / f"{len(self._files)}.{'mp4' if moving else 'png'}"
        write_video(path, fit(pixels, *sides), item.excerpt.fps or 1.0, crf=20)
        return path


def _pane(films: _Films, values: Values, score: Score, count: int) -> str:
    first, last = extremes(values, score.name, count, higher_first=score.better != "lower")
    names = ("Highest", "Lowest") if score.better == "neither" else ("Best", "Worst")
    parts = [] if isinstance(score, MeanScore) else [note(INFLUENCE)]
    for heading, items in zip(names, (first, last), strict=True):
        cards = [_card(films, item, values[item][score.name]) for item in items]
        parts.append(f'<h4>{heading}</h4><div class="cards">{"".join(cards)}</div>' if cards else "")
    return "".join(parts)


def _card(films: _Films, item: Item, value: float) -> str:
    where = f"{item.name}, frame {item.excerpt.start}" if item.excerpt.start else item.name
    caption = f'<span class="read">{escape(item.caption)}</span>' if item.caption else ""
    words = f'<b>{value:.4g}</b> <span class="dim">{escape(where)}</span>{caption}'
    return f"<figure>{films.html(item)}<figcaption>{words}</figcaption></figure>"
