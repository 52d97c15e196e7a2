"""Training runs, a line each: what `latentvid runs` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.curriculum import curriculum
from ..config.distillation import DistillConfig
from ..config.parsing import load_config
from ..config.schema import DitConfig, VaeConfig
from ..errors import UserError
from ..lock import held_by
from ..tables import text_table
from ..training.afterwards import PRODUCTS, next_command
from .runs import Run, is_run, read_run

RECENT = 50  # steps over which loss and rate are means
DEEPEST = 4  # folders below the one that is named
SCHEMAS = {"vae": VaeConfig, "dit": DitConfig, "distill": DistillConfig}
HEAD = ("run", "trains", "state", "step", "loss", "frames/s")


@dataclass(frozen=True)
class Listed:
    """A run, in words. then: the next useful command; "" while it trains."""

    folder: Path
    kind: str
    state: str
    step: str
    loss: str
    fps: str
    then: str

    @property
    def row(self) -> tuple[str, ...]:
        return str(self.folder), self.kind, self.state, self.step, self.loss, self.fps


def runs_below(folders: Iterable[Path]) -> Iterator[Path]:
    """The runs among folders, and below them. Raises UserError for one that is not there."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: give one with runs in it (run.dir of a training)")
        yield from _below(folder, DEEPEST)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
            yield from _below(inner, depth - 1)


def listed(folder: Path) -> Listed:
    """What is known of a run, by its files alone."""
    run = read_run(folder, folder.name)
    steps = run.column("step")
    done, end = (int(steps[-1]) if len(steps) else 0), _end(run)
    made = any((folder / name).is_dir() for name in PRODUCTS) or bool(end and done >= end)
    holder, finished = held_by(folder), made and not (end and done < end)
    if holder is not None:
        state = f"training ({holder})"
    elif finished:
        state = "finished"
    else:
        state = (
            "stopped"
            if (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir())
            else "no checkpoint"
        )
    return Listed(
        folder,
        run.kind or "?",
        state,
        f"{done:,}" if end is None else f"{done:,}/{end:,}",
        _mean(run.column("loss"), ".4g"),
        _fps(run),
        "" if holder is not None else next_command(folder, run.kind, run.config or {}, finished),
    )


def _end(run: Run) -> int | None:
    """The last step of the run, over all stages; None where its configuration cannot be read."""
    try:
        return curriculum(load_config(SCHEMAS[run.kind or ""], run.folder / "config.yaml"))[-1].end
    except (UserError, KeyError, ValueError):
        return None


def _mean(values: np.ndarray, form: str) -> str:
    known = values[-RECENT:][np.isfinite(values[-RECENT:])]
    return format(float(known.mean()), form) if len(known) else ""


def _fps(run: Run) -> str:
    """Frames trained on a second: samples a second times the frames of a sample, as a mean over the data."""
    kinds: Sequence[Any] = (run.facts or {}).get("trained") or ()
    count = sum(kind.get("count", 0) for kind in kinds)
    if not count:
        return ""
    return _mean(run.column("samples_per_s") * sum(k["frames"] * k["count"] for k in kinds) / count, ",.0f")


def text_of(runs: Sequence[Listed]) -> str:
    """The table, and below it the next command of each run that does not train."""
    lines = [text_table([HEAD, *(run.row for run in runs)])]
    return "\n".join([*lines, *(f"\n{run.folder}: next\n    {run.then}" for run in runs if run.then)])
