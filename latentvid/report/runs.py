"""What a training run's folder holds, read for a page."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..training.yaml_files import parse_yaml

LOGS = ("metrics.jsonl", "config.yaml", "run.json", "validation.jsonl")  # any of them makes a folder a run
KINDS = {"vae": "Autoencoder", "dit": "Diffusion transformer", None: "Training run"}
SAMPLE = re.compile(r"step-(\d+)-(ema|raw)(?:\.png|-(\d+)\.(?:png|mp4))")


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
    validation: lines of validation.jsonl. samples: by step, then by weights.
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

    def column(self, key: str) -> np.ndarray:
        """[n] numbers of metrics.jsonl, all NaN where there are none."""
        return self.columns.get(key, np.full(len(self.columns.get("step", ())), np.nan))

    def section(self, name: str) -> dict[str, Any]:
        """A section of the configuration; empty where it is not known."""
        found = (self.config or {}).get(name)
        return found if isinstance(found, dict) else {}


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in LOGS)


def read_run(folder: Path, label: str) -> Run:
    """Raises UserError, which names the file and the fix, for one that is damaged."""
    file = folder / "config.yaml"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    config = parse_yaml(text, str(file)) if text else None
    if config is not None and not isinstance(config, dict):
        raise UserError(f"{file} holds no mapping: put back the config.yaml that the run wrote")
    kind = None
    if config is not None:
        kind = "dit" if "text_encoder" in config else "vae" if "statistics_samples" in config else None
    return Run(
        folder=folder,
        label=label,
        kind=kind,
        columns=read_columns(folder / "metrics.jsonl"),
        validation=sorted(_records(folder / "validation.jsonl"), key=lambda line: line["step"]),
        best=read_json(folder / "best.json"),
        facts=read_json(folder / "run.json"),
        config=config,
        config_text=text,
        evaluation=read_json(folder / "evaluation" / "scores.json"),
        samples=find_samples(folder / "samples"),
    )


def read_json(path: Path) -> Any:
    """What the file holds; None where it is not there."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it, or make it again") from error
    return found


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log, if it is there; one cut short by a kill is left out."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The numbers of metrics.jsonl by key, in little memory: eight bytes each, a line at a time."""
    columns: dict[str, array] = {"step": array("d")}
    count = 0
    for record in _records(path):
        for key, value in record.items():
            if isinstance(value, int | float):
                column = columns.setdefault(key, array("d"))
                column.extend([np.nan] * (count - len(column)))
                column.append(value)
        count += 1
    for column in columns.values():
        column.extend([np.nan] * (count - len(column)))
    found = {key: np.array(column) for key, column in columns.items()}
    if count:
        found["wall"] = wall_time(found.get("seconds", np.full(count, np.nan)))
        found["seen"] = np.cumsum(np.nan_to_num(found["tokens"])) if "tokens" in found else np.full(count, np.nan)
    return found


def wall_time(seconds: np.ndarray) -> np.ndarray:
    """Seconds of training up to each step: the clock of `seconds` starts anew whenever a run goes on after a stop."""
    passed = np.diff(seconds, prepend=0.0)
    return np.cumsum(np.where(passed < 0, seconds, passed))


def find_samples(folder: Path) -> dict[int, dict[str, Samples]]:
    """step-000200-ema.png (the grid) and step-000200-ema-0.mp4 (a clip), by step (increasing) and weights."""
    found: dict[int, dict[str, Samples]] = {}
    for path in sorted(folder.glob("step-*")) if folder.is_dir() else ():
        match = SAMPLE.fullmatch(path.name)
        if match is None:
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
