"""Validation of one run, or of several: by timestep bin, and scores with their intervals over steps."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ..charts import Line, chart
from ..page import Page
from .curves import colour, figures, marks, missing, named, validated
from .runs import Run
from .scores import Score, score_table
from .words import title, weights, words

MEASURES = {
    "loss": "loss",
    "x_mse": "square error of the clean latents",
    "student_loss": "student's error beside the data",
    "teacher_loss": "teacher's error beside the data, or beside the student's clips",
    "critic_loss": "critic's error beside the student's clips",
}
KNOWN = {"step", "stage", "weights", "loss", "bins", "samples", "scores", "seconds"}


def best_of(run: Run) -> str:
    """What best.json says."""
    if not run.best:
        return "not known, best.json is missing"
    value = run.best.get("value")
    figure = f"{value:.5g}" if _number(value) else "?"
    step, of = run.best.get("step", 0), weights(run.best.get("weights", "?"))
    return f"{words(run.best.get('metric', 'loss'))} {figure} at step {step:,} ({of})"


def validation(page: Page, runs: Sequence[Run]) -> str:
    """All of validation.jsonl but the loss over steps, which stands beside that of training."""
    notes = missing(
        runs,
        [bool(run.validation) for run in runs],
        "validation.jsonl is missing: validation.every and validation.manifest ask for it",
    )
    if not any(run.validation for run in runs):
        return notes
    parts = [notes, *(f'<p class="dim">{escape(_sentence(run, runs))}</p>' for run in runs if run.validation)]
    keys = sorted({key for run in runs for row in run.validation for key in row} - KNOWN)
    charts = []
    for key in keys:
        lines = [n for i, run in enumerate(runs) for n in validated(run, runs, key, "step", _paints(i, runs), "")]
        scale = "log" if key == "x_mse" else "fit"
        charts.append(chart(title(key), lines, scale=scale, hold_x=[0], marks=marks(runs)) if lines else "")
    parts.append(figures(charts) if charts else "")
    parts.append(by_bin(page, runs))
    parts.append(over_steps(runs))
    return "".join(parts)


def _paints(number: int, runs: Sequence[Run]) -> dict[str, str]:
    """Of one run a colour for each set of weights; of several a colour for each run."""
    return dict(zip(("ema", "raw"), (colour(1), colour(2)) if len(runs) == 1 else [colour(number)] * 2, strict=True))


def _sentence(run: Run, runs: Sequence[Run]) -> str:
    last = run.validation[-1]
    times = len({row["step"] for row in run.validation})
    on = f"{last['samples']:,} held-out samples" if last.get("samples") else "held-out samples"
    whose = f"{run.label}: " if len(runs) > 1 else ""
    return f"{whose}{times} time{'s' * (times != 1)} on {on}; best: {best_of(run)}."


# ------------------------------------------------------------------------------------------------------ timestep bins


def by_bin(page: Page, runs: Sequence[Run]) -> str:
    """Each bin over steps (a chart a run, with the same axes), and the profile over bins at the last and best step."""
    panes = []
    for key, measure in MEASURES.items():
        rows = [_binned(run, key) for run in runs]
        values = [b[key] for own in rows for row in own for b in row["bins"] if _number(b.get(key))]
        if not values:
            continue
        steps = [0, *(row["step"] for own in rows for row in own)]
        charts, profiles = [], []
        for i, (run, own) in enumerate(zip(runs, rows, strict=True)):
            if own:
                of = weights(own[0]["weights"])
                name = f"{run.label}: each bin over steps ({of})" if len(runs) > 1 else f"Each bin ({of})"
                charts.append(chart(name, _bin_lines(own, key), scale="log", hold_x=steps, hold_y=values))
                profiles += _profiles(run, runs, own, key, colour(i))
        charts.append(chart("Over the bins", profiles, scale="log", x_label="timestep"))
        panes.append((measure, figures(charts)))
    return f"<h4>By timestep, with fixed noise</h4>{page.tabs(panes)}" if panes else ""


def _binned(run: Run, key: str) -> list[dict[str, Any]]:
    """The lines that have the figure by bin: of the averaged weights, or else of the raw ones."""
    rows = [row for row in run.validation if any(_number(b.get(key)) for b in row.get("bins") or ())]
    of = {name: [row for row in rows if row.get("weights") == name] for name in ("ema", "raw")}
    return of["ema"] or of["raw"]


def _number(value: object) -> bool:
    return isinstance(value, int | float)


def _bin_lines(rows: Sequence[dict], key: str) -> list[Line]:
    """A line for each bin, from blue (little noise) to red."""
    places = sorted({(b["from"], b["to"]) for row in rows for b in row["bins"]})
    lines = []
    for i, place in enumerate(places):
        points = [(row["step"], b[key]) for row in rows for b in row["bins"]
                  if (b["from"], b["to"]) == place and _number(b.get(key))]  # fmt: skip
        x, y = np.array(points, dtype=float).reshape(-1, 2).T
        hue = 225 - 215 * i / max(len(places) - 1, 1)
        lines.append(Line(f"{place[0]:g} to {place[1]:g}", x, y, f"hsl({hue:.0f} 70% 52%)"))
    return lines


def _profiles(run: Run, runs: Sequence[Run], rows: Sequence[dict], key: str, paint: str) -> list[Line]:
    """Of the last step, and of the best where that is another."""
    best = (run.best or {}).get("step")
    chosen = [(rows[-1], "last"), *((row, "best") for row in rows[:-1] if row["step"] == best)]
    lines = []
    for row, name in chosen:
        bins = [b for b in row["bins"] if _number(b.get(key))]
        x = np.array([(b["from"] + b["to"]) / 2 for b in bins])
        y = np.array([b[key] for b in bins], dtype=float)
        label = named(run, runs, f"{name}, step {row['step']:,} ({weights(row['weights'])})")
        lines.append(Line(label, x, y, paint, dashed=name == "best"))
    return lines


# -------------------------------------------------------------------------------------------------------------- scores


def over_steps(runs: Sequence[Run]) -> str:
    """Scores of generated clips with their intervals: a chart each, and a table of the last of each run."""
    names = dict.fromkeys(name for run in runs for row in run.validation for name in row.get("scores") or ())
    if not names:
        return ""
    charts, lasts = [], []
    for name in names:
        lines = [n for i, run in enumerate(runs) for n in _score_lines(run, runs, name, _paints(i, runs))]
        charts.append(chart(f"Score: {words(name)}", lines, hold_x=[0], marks=marks(runs)))
    heads = []
    for run in runs:
        scored = [row for row in run.validation if row.get("scores")]
        ema = [row for row in scored if row.get("weights") == "ema"] or scored
        lasts.append({name: Score.of(score) for name, score in ema[-1]["scores"].items()} if ema else {})
        heads.append(
            named(run, runs, f"step {ema[-1]['step']:,} ({weights(ema[-1].get('weights'))})" if ema else "no scores")
        )
    return f"<h4>Scores of samples</h4>{figures(charts)}{score_table(heads, lasts)}"


def _score_lines(run: Run, runs: Sequence[Run], name: str, paints: dict[str, str]) -> list[Line]:
    lines = []
    for of, paint in paints.items():
        rows = [r for r in run.validation if r.get("weights") == of and name in (r.get("scores") or {})]
        if rows:
            x = np.array([row["step"] for row in rows], dtype=float)
            y, low, high = (np.array([_or_nan(row["scores"][name].get(k)) for row in rows])
                            for k in ("value", "low", "high"))  # fmt: skip
            label = named(run, runs, weights(of))
            lines.append(Line(label, x, y, paint, low=low, high=high, dashed=of == "raw"))
    return lines


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
