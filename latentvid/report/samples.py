"""What a run generated as it learnt: grids and looping videos by step, of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..data.video.reading import probe
from ..errors import ClipError
from ..page import Page, note
from .curves import missing
from .runs import SAMPLE, Run, Samples
from .words import weights as named_weights

SMALL = 128  # pixels: narrower clips are shown enlarged, without blur


def samples(page: Page, runs: Sequence[Run]) -> str:
    """A tab for each step that any of the runs showed, the newest that all of them showed chosen.

    Where the page is full the oldest clips are left out, then the oldest grids, and the page says which.
    """
    has = [bool(run.samples) for run in runs]
    notes = missing(runs, has, "no samples: samples.every of the configuration asks for them")
    if not any(has):
        return notes
    steps = sorted({step for run in runs for step in run.samples})
    common = [step for step in steps if all(step in run.samples for run in runs)]
    sources, left = _sources(page, runs, steps)
    panes = [(f"{step:,}", _step(runs, step, sources)) for step in steps]
    words = '<p class="dim">By step; the arrow keys go from one to the next.</p>' if len(steps) > 1 else ""
    chosen = steps.index(common[-1]) if common else len(steps) - 1
    return notes + _left_out(page, left) + words + f'<div class="samples">{page.tabs(panes, chosen)}</div>'


def _sources(page: Page, runs: Sequence[Run], steps: Sequence[int]) -> tuple[dict[Path, str], list[tuple[int, Path]]]:
    """What the page has room for as data URIs, grids before clips and new before old, and what it has not."""
    grids, clips = [], []
    for step in reversed(steps):
        shown = [one for run in runs for one in run.samples.get(step, {}).values()]
        grids += [(step, one.grid) for one in shown if one.grid is not None]
        clips += [(step, path) for one in shown for path in one.clips.values()]
    sources, left, full = {}, [], False
    for step, path in (*grids, *clips):
        source = None if full else page.offer(path)
        full = source is None  # so that what is left out is the oldest, not the largest
        if full:
            left.append((step, path))
        else:
            sources[path] = source
    return sources, left


def _left_out(page: Page, left: Sequence[tuple[int, Path]]) -> str:
    parts = []
    for kind, is_grid in (("grids", True), ("clips", False)):
        steps = [step for step, path in left if (SAMPLE.fullmatch(path.name)[3] is None) == is_grid]
        if steps:
            parts.append(f"{len(steps)} {kind} of steps {min(steps):,} to {max(steps):,}")
    if not parts:
        return ""
    return note(f"Left out, to hold the page to {page.limit / 1e6:,.0f} MB: {' and '.join(parts)}.")


def _step(runs: Sequence[Run], step: int, sources: dict[Path, str]) -> str:
    """All that the runs showed at a step, a column a run."""
    columns = []
    for run in runs:
        found = run.samples.get(step, {})
        heading = f"<h4>{escape(run.label)}</h4>" if len(runs) > 1 else ""
        shown = "".join(_weights(run, weights, found[weights], sources, len(found) > 1) for weights in sorted(found))
        columns.append(f"<div>{heading}{shown or note(f'nothing at step {step:,}')}</div>")
    return f'<div class="beside">{"".join(columns)}</div>'


def _weights(run: Run, weights: str, shown: Samples, sources: dict[Path, str], several: bool) -> str:
    prompts = run.section("samples").get("prompts")
    prompts = prompts if isinstance(prompts, list) else []
    small = " small" if _small(shown) else ""
    parts = [f"<h4>{escape(named_weights(weights).capitalize())}</h4>" if several else ""]
    if shown.grid in sources:
        parts.append(_grid(shown.grid, sources[shown.grid], weights))
    cards = []
    for number, path in sorted(shown.clips.items()):
        source = sources.get(path)
        if source is None:
            film = note("left out")
        elif path.suffix == ".mp4":
            film = f'<video class="clip{small}" src="{source}" autoplay loop muted playsinline></video>'
        else:
            film = f'<img class="clip{small}" src="{source}" alt="sample {number}">'
        prompt = f"<figcaption>{escape(str(prompts[number]))}</figcaption>" if number < len(prompts) else ""
        cards.append(f"<figure>{film}{prompt}</figure>")
    parts.append(f'<h4>One by one</h4><div class="cards">{"".join(cards)}</div>' if cards else "")
    return "".join(parts)


def _small(shown: Samples) -> bool:
    """By the first clip: those of a run are about as large as each other."""
    first = next(iter(shown.clips.values()), None)
    return first is not None and (_width(first) or SMALL) < SMALL


def _width(path: Path) -> int | None:
    """None where it cannot be read."""
    try:
        return probe(path).width
    except ClipError:
        return None


def _grid(path: Path, source: str, weights: str) -> str:
    """A narrow picture is enlarged."""
    width = _width(path)
    if width is None:
        return note(f"{path.name} cannot be read")
    zoom = max(1, min(4, 1000 // width))
    kind = "wide small" if zoom > 1 else "wide"
    return f'<img class="{kind}" width="{zoom * width}" src="{source}" alt="samples, {escape(named_weights(weights))}">'
