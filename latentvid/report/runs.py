"""What a training run's folder holds, read for a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config.schema import stage_of
from ..errors import UserError
from ..files import leads_out
from ..page import Page
from ..training.checkpoint.records import About, Best
from .reading import Evaluation, Faults, read_columns, read_config, read_json, read_measured, there

LOGS = ("metrics.jsonl", "config.yaml", "run.json", "validation.jsonl")  # any of them makes a folder a run
KINDS = {"vae": "Autoencoder", "dit": "Diffusion transformer", "distill": "Distilled transformer", None: "Training run"}
SAMPLE = re.compile(r"step-(\d{1,9})-(ema|raw)(?:\.png|-(\d{1,6})\.(?:png|mp4))")


@dataclass(frozen=True)
class Samples:
    """What a run showed at one step with one set of weights. clips: by number, .mp4, or .png where it is one frame."""

    grid: Path | None
    clips: dict[int, Path]


@dataclass(frozen=True)
class Run:
    """A training run. What its folder does not hold is empty or None.

    label: how the page names it. kind: a key of KINDS. columns: of metrics.jsonl by key, [n] each, NaN where a line
    has no number; "wall" (seconds of training, over all starts) and "seen" (tokens so far) are made from them.
    validation: lines of validation.jsonl. samples: by step, then by weights. faults: what of the folder is
    not whole, a line each.
    """

    folder: Path
    label: str
    kind: str | None
    columns: dict[str, np.ndarray]
    validation: list[dict[str, Any]]
    best: dict[str, Any] | None
    facts: dict[str, Any] | None
    config: dict[str, Any] | None
    config_text: str
    evaluation: dict[str, Any] | None
    samples: dict[int, dict[str, Samples]]
    faults: tuple[str, ...] = ()

    def column(self, key: str) -> np.ndarray:
        """[n] numbers of metrics.jsonl, all NaN where there are none."""
        return self.columns.get(key, np.full(len(self.columns.get("step", ())), np.nan))

    @property
    def stages(self) -> list[dict[str, Any]]:
        """What run.json says of the stages of a curriculum that have begun; none where there is none."""
        return (self.facts or {}).get("stages") or []

    @property
    def marks(self) -> list[tuple[float, str]]:
        """The first step of each stage of a curriculum, and its name."""
        return [(stage.get("begin", 0) + 1, stage.get("name", "?")) for stage in self.stages]

    def section(self, name: str) -> dict[str, Any]:
        """A section of the configuration; empty where it is not known."""
        found = (self.config or {}).get(name)
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Collection:
    """How the page of a folder of runs presents it.

    title, lead: of the page. runs: headings of runs that such a folder should hold, by name, in their order. sections:
    (title, what makes its HTML) of what stands before the runs, of (page, folders, labels). repeat: the commands.
    """

    title: str
    lead: str
    runs: dict[str, str] = field(default_factory=dict)
    sections: Callable[[Page, Sequence[Path], Sequence[str]], list[tuple[str, Callable[[], str]]]] = lambda *_: []
    repeat: Callable[[Sequence[Path]], str] | None = None


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in LOGS)


def is_demo(folder: Path) -> bool:
    return (folder / "scores.json").is_file() or any((folder / name).is_dir() for name in ("vae_run", "dit_run"))


def read_run(folder: Path, label: str) -> Run:
    """What is whole of it; `faults` says what is not."""
    faults = Faults()
    text, config = read_config(folder / "config.yaml", folder, faults)
    return Run(
        folder=folder,
        label=label,
        kind=stage_of(config or {}),
        columns=_with_sums(read_columns(folder / "metrics.jsonl", folder, faults)),
        validation=read_measured(folder / "validation.jsonl", folder, faults),
        best=read_json(folder / "best.json", folder, faults, Best),
        facts=read_json(folder / "run.json", folder, faults, About),
        config=config,
        config_text=text,
        evaluation=read_json(folder / "evaluation" / "scores.json", folder, faults, Evaluation),
        samples=find_samples(folder, faults),
        faults=tuple(faults.lines),
    )


def _with_sums(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    count = len(columns["step"])
    if not count:
        return columns
    unknown = np.full(count, np.nan)
    seen = np.cumsum(np.nan_to_num(columns["tokens"])) if "tokens" in columns else unknown
    return {**columns, "wall": wall_time(columns.get("seconds", unknown)), "seen": seen}


def wall_time(seconds: np.ndarray) -> np.ndarray:
    """Seconds of training up to each step: the clock of `seconds` starts anew whenever a run goes on after a stop."""
    passed = np.diff(seconds, prepend=0.0)
    return np.cumsum(np.where(passed < 0, seconds, passed))


def find_samples(run: Path, faults: Faults) -> dict[int, dict[str, Samples]]:
    """samples/step-000200-ema.png (the grid) and step-000200-ema-0.mp4 (a clip), by step (increasing) and weights."""
    folder = run / "samples"
    if folder.exists() and (not folder.is_dir() or leads_out(folder, run)):
        faults.add("samples", "is no folder of the run")
        return {}
    found: dict[int, dict[str, Samples]] = {}
    for path in sorted(folder.glob("step-*")) if folder.is_dir() else ():
        match = SAMPLE.fullmatch(path.name)
        if match is None or not there(path, run, faults):
            continue
        step, weights = int(match[1]), match[2]
        old = found.setdefault(step, {}).get(weights, Samples(None, {}))
        new = Samples(path, old.clips) if match[3] is None else Samples(old.grid, old.clips | {int(match[3]): path})
        found[step][weights] = new
    return dict(sorted(found.items()))


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart: "dit_run", or "a/dit_run" and "b/dit_run"."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    raise UserError(f"{folders[0]} is given twice: name different runs")
