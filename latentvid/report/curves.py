"""Curves of training and where its time goes: of one run, or of several over the same axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from ..charts import PALETTE, Line, chart, smooth, stacked
from ..page import Page, facts, note
from ..training.monitor.efficiency import SPANS
from .runs import Run
from .words import weights as named_weights
from .words import words

SHARES = {key: words(key) for key in SPANS.values()}
RATES = ("tokens_per_s", "samples_per_s", "mfu")
NOT_LOSS = {"step", "stage", "loss", "lr", "grad_norm", "tokens", "samples", "fill", "balance", "replaced", "epoch",
            "cpu_s", "skipped_steps", "seconds", "wall", "seen", *RATES, *SHARES}  # fmt: skip
SPEED = {
    "tokens_per_s": "Tokens per second",
    "mfu": "MFU (share of the devices' arithmetic)",
    "fill": "Fill (tokens over the packs' room)",
    "balance": "Balance (mean over dearest rank)",
}
AXES = {"step": ("by step", "step", 1.0), "seen": ("by tokens", "tokens", 1.0), "wall": ("by time", "minutes", 60.0)}


def colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def figures(charts: Iterable[str]) -> str:
    drawn = "".join(charts)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def marks(runs: Sequence[Run], axis: str = "step") -> list[tuple[float, str]]:
    """Where the stages of a curriculum begin, on the page of one run."""
    return runs[0].marks if len(runs) == 1 and axis == "step" else []


def missing(runs: Sequence[Run], has: Sequence[bool], what: str) -> str:
    """Notes on the runs that have it not, where others have it: what none has, the summary says."""
    if not any(has):
        return ""
    without = [run.label for run, there in zip(runs, has, strict=True) if not there]
    return note(f"{', '.join(without)}: {what}") if without else ""


def named(run: Run, runs: Sequence[Run], what: str) -> str:
    """A line's label: on the page of one run what it shows, of several whose it is as well."""
    return what if len(runs) == 1 else f"{run.label} {what}".strip()


def noisy(run: Run, runs: Sequence[Run], key: str, axis: str, paint: str, *, log: bool) -> list[Line]:
    """Every step thin, the average thick."""
    values, (_, _, unit) = run.column(key), AXES[axis]
    shown = np.isfinite(values) & ((values > 0) | (not log))
    x, values = run.column(axis)[shown] / unit, values[shown]
    average = np.array(smooth(np.log(values) if log else values, max(len(values) / 40, 8)))
    average = np.exp(average) if log else average
    raw = Line("step" if len(runs) == 1 else "", x, values, paint, "raw")
    return [raw, Line(named(run, runs, "average" if len(runs) == 1 else ""), x, average, paint, "mean")]


def validated(
    run: Run, runs: Sequence[Run], key: str, axis: str, paints: dict[str, str], what: str = "validation, "
) -> list[Line]:
    """A figure of validation.jsonl over steps, a line for each set of weights; raw weights are dashed."""
    lines = []
    for weights, paint in paints.items():
        rows = [r for r in run.validation if r.get("weights") == weights and isinstance(r.get(key), int | float)]
        if rows:
            steps = np.array([row["step"] for row in rows], dtype=float)
            values = np.array([row[key] for row in rows], dtype=float)
            label = named(run, runs, f"{what}{named_weights(weights)}")
            lines.append(Line(label, along(run, axis, steps), values, paint, dashed=weights == "raw"))
    return lines


def along(run: Run, axis: str, steps: np.ndarray) -> np.ndarray:
    """Steps as what the axis measures; NaN where metrics.jsonl does not say it."""
    if axis == "step":
        return steps
    known = run.columns.get("step", np.empty(0))
    return np.interp(steps, known, run.column(axis)) / AXES[axis][2] if len(known) else np.full(len(steps), np.nan)


def _log_scale(runs: Sequence[Run], key: str) -> bool:
    """Whether all of the numbers are above 0."""
    values = np.concatenate([run.column(key) for run in runs])
    return bool((values[np.isfinite(values)] > 0).all())


def _training_charts(runs: Sequence[Run], axis: str) -> list[str]:
    label = AXES[axis][1]
    own, begins = {"ema": PALETTE[1], "raw": PALETTE[2]}, marks(runs, axis)

    def over(key: str, title: str, log: bool, more: Sequence[Line] = ()) -> str:
        lines = [line for i, run in enumerate(runs) for line in noisy(run, runs, key, axis, colour(i), log=log)]
        return chart(title, [*lines, *more], scale="log" if log else "fit", x_label=label, marks=begins)

    beside = validated(runs[0], runs, "loss", axis, own) if len(runs) == 1 else []
    charts = [over("loss", "Loss of training" + " and validation" * bool(beside), _log_scale(runs, "loss"), beside)]
    if len(runs) > 1:
        lines = [
            line
            for i, run in enumerate(runs)
            for line in validated(run, runs, "loss", axis, dict.fromkeys(own, colour(i)), "")
        ]
        charts += [chart("Loss of validation", lines, scale="log", x_label=label, hold_x=[0])] if lines else []
    parts = sorted({key for run in runs for key in run.columns} - NOT_LOSS, key=lambda key: (words(key) == key, key))
    charts += [over(key, f"Part of the loss: {words(key)}", _log_scale(runs, key)) for key in parts]
    steady = [Line(named(r, runs, ""), r.column(axis) / AXES[axis][2], r.column("lr"), colour(i), "mean")
              for i, r in enumerate(runs)]  # fmt: skip
    charts.append(chart("Learning rate", steady, scale="zero", x_label=label, marks=begins))
    charts.append(over("grad_norm", "Gradient norm", _log_scale(runs, "grad_norm")))
    return charts


def training_curves(page: Page, runs: Sequence[Run]) -> str:
    """Loss and its parts, learning rate and gradient norm; of several runs by step, by tokens and by time."""
    has = [len(run.columns["step"]) > 0 for run in runs]
    notes = missing(runs, has, "metrics.jsonl is missing or empty: no curves of training")
    if not any(has):
        return notes
    axes = AXES if len(runs) > 1 else ["step"]
    return notes + page.tabs([(AXES[axis][0], figures(_training_charts(runs, axis))) for axis in axes])


def mean_share(run: Run, key: str) -> float:
    """Of the whole run's time."""
    spent = np.diff(run.column("wall"), prepend=0.0)
    values = run.column(key)
    known = np.isfinite(values) & np.isfinite(spent)
    return float((values[known] * spent[known]).sum() / max(spent[known].sum(), 1e-9)) if known.any() else float("nan")


def efficiency(runs: Sequence[Run]) -> str:
    """Throughput, MFU, how full the packs are, and shares of the wall time."""
    if not any(len(run.columns["step"]) for run in runs):
        return ""
    charts = []
    for key, title in SPEED.items():
        lines = [n for i, run in enumerate(runs) for n in noisy(run, runs, key, "step", colour(i), log=False)]
        charts.append(chart(title, lines, scale="zero", marks=marks(runs)))
    for run in runs:
        title = f"{run.label}: shares of the time" if len(runs) > 1 else "Shares of the time"
        shares = {name: run.column(key) for key, name in SHARES.items() if key in run.columns}
        charts.append(stacked(title, run.column("step"), shares, "the rest"))
    rows = []
    for key, name in SHARES.items():
        values = [mean_share(run, key) for run in runs]
        if any(np.isfinite(values)):
            rows.append((name, *(f"{v:.1%}" if np.isfinite(v) else "" for v in values)))
    head = ("share of the whole run's time", *(escape(run.label) if len(runs) > 1 else "" for run in runs))
    whole = f"<h4>Over the whole run</h4>{facts(head, rows)}" if rows else ""
    return figures(charts) + whole
