"""Runs in training: their states, curves and samples, read again while they train."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..page import Page
from ..report.curves import training_curves
from ..report.facts import lacking
from ..report.listing import HEAD, listed
from ..report.pages import broken, whole
from ..report.runs import read_run
from ..report.samples import samples
from ..report.validation import validation
from .studio import Studio

EVERY_S = 5.0
MEGABYTES = 24  # of clips and pictures on the page
FILES = ("metrics.jsonl", "validation.jsonl", "run.json")


def table(studio: Studio) -> list[list[str]]:
    """A row for each run, as `latentvid runs` has them."""
    rows = []
    for folder in studio.folders():
        try:
            rows.append(list(listed(folder).row))
        except (UserError, OSError, ValueError) as error:
            rows.append([str(folder), "?", f"cannot be read ({str(error)[:80]})", "", "", ""])
    return rows


def table_of(rows: list[list[str]]) -> str:
    """HTML of the rows; a narrow page has a block for each, whose parts are named."""
    if not rows:
        return "<p>No runs yet.</p>"
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    named = [zip(HEAD, row, strict=True) for row in rows]
    body = "".join(
        "<tr>" + "".join(f'<td data-name="{escape(name)}">{escape(text)}</td>' for name, text in row) + "</tr>"
        for row in named
    )
    return f'<table class="lv-runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def document(folder: Path) -> str:
    """The run's curves, validation and samples as an HTML document of its own."""
    page, run = Page(MEGABYTES * 1_000_000), read_run(folder, folder.name)
    sections = [
        ("", lacking([run])),
        ("Curves", broken([run]) + whole(lambda: training_curves(page, [run]))),
        ("Samples", whole(lambda: samples(page, [run]))),
        ("Validation", whole(lambda: validation(page, [run]))),
    ]
    return page.html(folder.name, str(folder), [("", sections)], "")


def frame(document: str) -> str:
    """HTML that shows a document apart from the page around it, with no right to run a script."""
    return f'<iframe class="lv-frame" sandbox="" style="height: 80vh" title="run" srcdoc="{escape(document)}"></iframe>'


def written(folder: Path) -> tuple[Any, ...]:
    """What changes when the run has written something to show."""
    found = [(folder / name) for name in FILES]
    times = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in found)
    shown = folder / "samples"
    return str(folder), *times, len(list(shown.iterdir())) if shown.is_dir() else 0


def shown(studio: Studio, name: str | None, before: Any) -> tuple[str | None, Any]:
    """(HTML of the run of that name, what it was made of); None where nothing has changed. `name` is one of the
    table's."""
    folder = next((folder for folder in studio.folders() if str(folder) == name), None)
    if folder is None:
        return "", None
    now = written(folder)
    return (None, before) if before == now else (frame(document(folder)), now)


def runs_tab(studio: Studio, tab: Any, plain: dict[str, Any]) -> None:
    import gradio as gr

    rows = table(studio)
    names = [row[0] for row in rows]
    listing = gr.HTML(table_of(rows), elem_id="runs")
    with gr.Row():
        chosen = gr.Dropdown(names, value=names[0] if names else None, label="Run", elem_id="run", min_width=320)
        live = gr.Checkbox(True, label=f"Read again every {EVERY_S:g} seconds", min_width=320)
    page, seen, clock = gr.HTML(elem_id="run-page"), gr.State(None), gr.Timer(EVERY_S, active=False)

    def look(name: str | None, before: Any) -> tuple[Any, Any, Any, Any]:
        rows = table(studio)
        names = [row[0] for row in rows]
        name = name if name in names else names[0] if names else None
        html, now = shown(studio, name, before)
        return table_of(rows), gr.update(choices=names, value=name), gr.skip() if html is None else html, now

    both = [listing, chosen, page, seen]
    tab.select(look, [chosen, seen], both, **plain)
    clock.tick(look, [chosen, seen], both, **plain)
    tab.select(lambda live: gr.Timer(active=live), live, clock, **plain)
    live.change(lambda live: gr.Timer(active=live), live, clock, **plain)
    chosen.input(look, [chosen, seen], both, **plain)
