"""Tables of a run's facts: summary, data plan, versions and machine, starts, how to repeat."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..charts import short
from ..config.entries import by_name, flat
from ..files import file_fault
from ..page import duration, facts, note, table
from ..training.monitor.about import versions as installed
from .curves import mean_share
from .runs import KINDS, Run
from .validation import best_of
from .words import words

SCRIPTS = {"vae": "vae/train_vae.py", "dit": "train/train_dit.py", "distill": "train/distill.py"}
LOSS = ("loss", "distill", "scheduler", "timesteps", "weighting", "given")  # sections that say what the loss is of
PLAN = {
    "samples": ("samples of an epoch", "{:,}"),
    "tokens": ("tokens of an epoch", "{:,}"),
    "tokens_per_pack": ("tokens of a full pack", "{:,}"),
    "packs_per_step": ("packs of a step", "{:,}"),
    "steps_per_epoch": ("steps of an epoch, if packs are full", "{:,.1f}"),
}
SHAPES = 12  # of the data plan that are listed
UNKNOWN = "run.json is missing (training writes it at its start)"


# ------------------------------------------------------------------------------------------------------------- summary


def summary(runs: Sequence[Run]) -> str:
    """What each run is and how far it came; rows that no run can fill are left out."""
    rows: list[tuple[str, Callable[[Run], str]]] = [
        ("model", lambda run: KINDS[run.kind]),
        ("parameters", parameters),
        ("steps", _steps),
        ("tokens", lambda run: _last(run, "seen", short)),
        ("samples", lambda run: _sum(run, "samples")),
        ("epochs", lambda run: _last(run, "epoch", lambda value: f"{value:.2f}")),
        ("time", lambda run: _last(run, "wall", duration)),
        ("processes", _processes),
        ("computed in", _computed_in),
        ("loss, mean of the last 2 % of steps", lambda run: _mean(run, "loss", last=0.02)),
        ("best of validation", lambda run: best_of(run) if run.best else ""),
        ("tokens per second", _rate),
        ("MFU", lambda run: _share(run, "mfu")),
        ("fill of the packs", lambda run: _share(run, "fill")),
        ("balance of the ranks", lambda run: _share(run, "balance")),
        ("skipped steps", lambda run: _last(run, "skipped_steps", lambda value: f"{value:,.0f}")),
        ("replaced samples", lambda run: _sum(run, "replaced")),
    ]
    cells = [(name, *(escape(say(run)) for run in runs)) for name, say in rows]
    head = ("", *(escape(run.label) if len(runs) > 1 else "" for run in runs))
    return _comparable(runs) + facts(head, [row for row in cells if any(row[1:])]) + lacking(runs)


LACKED = (  # what a page has no section for where no run has it: what it is, and whether a run has it
    ("curves (metrics.jsonl is missing or empty)", lambda run: len(run.columns["step"]) > 0),
    (
        "validation (no validation.jsonl: validation.every and validation.manifest ask for it)",
        lambda run: run.validation,
    ),
    ("samples (samples.every asks for them)", lambda run: run.samples),
    (
        "scores (no evaluation/scores.json: latentvid evaluate --out RUN/evaluation makes it)",
        lambda run: run.evaluation,
    ),
    ("configuration (config.yaml is missing)", lambda run: run.config is not None),
    (f"data, versions and machine ({UNKNOWN})", lambda run: run.facts),
)


def lacking(runs: Sequence[Run]) -> str:
    """One line on all that no run has."""
    lacked = [what for what, has in LACKED if not any(map(has, runs))]
    return f'<p class="dim">Not here: {escape("; ".join(lacked))}.</p>' if lacked else ""


def _comparable(runs: Sequence[Run]) -> str:
    """A warning where the losses are not of the same thing."""
    if len({run.kind for run in runs}) > 1:
        return note("These are different models: their losses do not compare.")
    differing = [name for name in LOSS if any(run.section(name) != runs[0].section(name) for run in runs)]
    if any((run.config or {}).get("stages") != (runs[0].config or {}).get("stages") for run in runs):
        differing.append("stages")
    if not differing:
        return ""
    other = "" if runs[0].kind == "vae" else "; the square error of the clean latents in validation does"
    return note(f"The configurations differ in {', '.join(differing)}: the losses do not compare{other}.")


def parameters(run: Run) -> str:
    """From run.json, or else counted in what the run exported."""
    count = (run.facts or {}).get("parameters")
    exported = sum(count_parameters(run.folder / part) for part in ("vae", "pipeline/transformer"))
    return millions(count or exported)


def millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count else ""


def count_parameters(folder: Path) -> int:
    """Of all weights in the folder; 0 where there are none."""
    return sum(map(_parameters, sorted(folder.glob("*.safetensors"))))


def _parameters(file: Path) -> int:
    if file_fault(file, file.parent) is not None:
        return 0
    try:
        return _counted(file)
    except (SafetensorError, OSError):
        return 0


def _counted(file: Path) -> int:
    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _known(run: Run, key: str) -> np.ndarray:
    values = run.column(key)
    return values[np.isfinite(values)]


def _last(run: Run, key: str, say: Callable[[float], str]) -> str:
    values = _known(run, key)
    return say(float(values[-1])) if len(values) else ""


def _sum(run: Run, key: str) -> str:
    values = _known(run, key)
    return f"{values.sum():,.0f}" if len(values) else ""


def _mean(run: Run, key: str, last: float) -> str:
    values = _known(run, key)
    return f"{values[-max(1, round(last * len(values))) :].mean():.5g}" if len(values) else ""


def _share(run: Run, key: str) -> str:
    value = mean_share(run, key)
    return f"{value:.1%}" if math.isfinite(value) else ""


def _rate(run: Run) -> str:
    tokens, wall = _known(run, "seen"), _known(run, "wall")
    return f"{tokens[-1] / wall[-1]:,.0f}" if len(tokens) and len(wall) and wall[-1] > 0 else ""


def _steps(run: Run) -> str:
    done, planned = _last(run, "step", lambda value: f"{value:,.0f}"), planned_steps(run)
    reached = f", in stage {run.stages[-1].get('name', '?')}" if run.stages else ""
    return f"{done} of {planned:,}{reached}" if done and isinstance(planned, int) else done


def planned_steps(run: Run) -> int | None:
    """`train.steps`, of a curriculum the sum over its stages; None where the configuration does not say."""
    own = flat(by_name(run.config or {}))
    lengths = [own.get(f"stages.{stage}.train.steps", own.get("train.steps")) for stage in _names(run)]
    return sum(lengths) if all(isinstance(steps, int) for steps in lengths) else None


def _names(run: Run) -> list[str]:
    """Of the stages that the configuration has; one of no name without them."""
    named = by_name(run.config or {}).get("stages")
    return list(named) if isinstance(named, dict) else [""]


def _computed_in(run: Run) -> str:
    found = (run.facts or {}).get("computes_in")
    passes = found.get("passes") if isinstance(found, dict) else None
    return {"no": "fp32", "bf16": "bf16"}.get(str(passes), "")


def _processes(run: Run) -> str:
    facts = run.facts or {}
    return f"{facts['world']} ({facts.get('strategy', '?')})" if "world" in facts else ""


# ---------------------------------------------------------------------------------------------------------------- data


def data(runs: Sequence[Run]) -> str:
    """What each run trains on, and how the plan packs it; once for runs that have the same."""
    parts, same = [], {}
    for run in runs:
        same.setdefault(_plan(run, len(runs) > 1), []).append(run.label)
    for plan, labels in same.items():
        parts.append(f"<h4>{escape(', '.join(labels))}</h4>{plan}" if len(runs) > 1 else plan)
    return "".join(parts)


def _plan(run: Run, several: bool) -> str:
    if run.facts is None:
        return note(f"{UNKNOWN}: the data plan is not known") if several else ""
    stages = [f"<h4>Stage {escape(stage.get('name', '?'))}</h4>{_of(stage)}" for stage in run.stages]
    return "".join(stages) or _of(run.facts)


def _of(found: dict[str, Any]) -> str:
    """Data and plan of a run, or of a stage of one."""
    plan = found.get("plan") or {}
    rows = [(name, form.format(plan[key])) for key, (name, form) in PLAN.items() if plan.get(key) is not None]
    text = f"<pre>{escape(str(found['data']))}</pre>" if found.get("data") else ""
    return text + facts(("the plan", ""), rows) + _shapes(plan)


def _shapes(plan: dict[str, Any]) -> str:
    """Shapes of the samples' token grids by their share of the tokens; run.json lists those with the most."""
    shapes = plan.get("shapes") or []
    if not shapes:
        return ""
    tokens = [shape["count"] * math.prod(shape["grid"]) for shape in shapes]
    whole, most = plan.get("tokens") or sum(tokens), max(tokens)
    order = sorted(range(len(shapes)), key=lambda i: -tokens[i])[:SHAPES]
    rows = []
    for i in order:
        bar = f'<i class="bar" style="width:{60 * tokens[i] / most:.1f}%"></i> {tokens[i] / whole:.1%}'
        rows.append((" x ".join(map(str, shapes[i]["grid"])), f"{shapes[i]['count']:,}", bar))
    rest = whole - sum(tokens[i] for i in order)
    head = ("token grid: frames x height x width", "samples", "share of the tokens")
    return table(head, rows, "barred") + (note(f"other shapes: {rest / whole:.1%} of the tokens") if rest > 0 else "")


# -------------------------------------------------------------------------------------------------- versions and starts


def versions(runs: Sequence[Run]) -> str:
    """Libraries and machine of each run, and when it started and went on."""
    parts = [note(f"{run.label}: {UNKNOWN}: versions, machine and starts are not known")
             for run in runs if run.facts is None and len(runs) > 1]  # fmt: skip
    known = [run for run in runs if run.facts is not None]
    columns = []
    for run in known:
        machine = dict(run.facts.get("machine") or {})
        if machine.get("memory_gib") is not None:
            machine["memory"] = f"{machine.pop('memory_gib')} GiB"
        columns.append(machine | dict(run.facts.get("versions") or {}))
    keys = dict.fromkeys(key for column in columns for key in column)
    head = ("", *(escape(run.label) if len(runs) > 1 else "" for run in known))
    rows = [(escape(words(key)), *(_machine(column.get(key)) for column in columns)) for key in keys]
    parts.append(facts(head, rows, "words"))
    for run in known:
        starts = run.facts.get("starts") or []
        title = f"Starts of {run.label}" if len(runs) > 1 else "Starts"
        again = f", {len(starts) - 1} of them after a stop" if len(starts) > 1 else ""
        rows = [(escape(str(s.get("time", "?"))), f"{s.get('step', 0):,}", escape(str(s.get("strategy", "?"))),
                 str(s.get("world", "?"))) for s in starts]  # fmt: skip
        head = (f"{len(starts)} in all{again}", "from step", "strategy", "processes")
        parts.append(f"<h4>{escape(title)}</h4>{table(head, rows)}" if rows else "")
    return "".join(parts)


def _machine(value: Any) -> str:
    return '<span class="dim">none</span>' if value is None else escape(str(value))


def made_by() -> str:
    """The versions that made the page, which need not be those of the run."""
    return f"Page made by python -m latentvid.report with {', '.join(f'{k} {v}' for k, v in installed().items())}."


# -------------------------------------------------------------------------------------------------------------- repeat


def shown_path(folder: Path) -> str:
    """The folder as a command names it, without where it lies on this machine."""
    return (Path(folder.name) if folder.is_absolute() else folder).as_posix()


def repeat(runs: Sequence[Run]) -> str:
    commands = []
    for run in runs:
        folder, script = shown_path(run.folder), SCRIPTS.get(run.kind)
        world = (run.facts or {}).get("world") or 1
        launch = f"accelerate launch --num_processes {world}" if world > 1 else "python"
        if script and run.config is not None:
            commands.append(f"{launch} {script} {folder}/config.yaml --run.dir={folder}-again")
    commands.append(f"python -m latentvid.report {' '.join(shown_path(run.folder) for run in runs)}")
    if len(runs) == 1:
        folder = shown_path(runs[0].folder)
        commands.append(f"python -m latentvid.report {folder} {folder}-again")
    return f"<pre>{escape(chr(10).join(commands))}</pre>"
