"""Files of a run's folder as a page takes them: what is whole, and in words what is not. Nothing here raises."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

import numpy as np
import yaml
from pydantic import Field
from typing_extensions import TypedDict

from ..config.yaml_files import parse_yaml
from ..errors import UserError
from ..files import MOST_JSON, file_fault
from ..training.checkpoint.records import STRICT, Number, Record, Step, salvaged

T = TypeVar("T")

MOST = 1e30  # numbers beyond it are no measurements, and no chart can hold them
LINE = 1_000_000  # bytes of a line of a log
KEYS = 200  # of a line
CONFIG = 200_000  # bytes of a configuration
SAID = 3  # faults of a file that are told one by one

Clips = Annotated[int, Field(ge=0, lt=2**63)]


Bin = TypedDict("Bin", {"from": Number, "to": Number})  # of noise levels; its other keys are figures
Bin.__pydantic_config__ = STRICT


class ScoreFound(Record):
    value: NotRequired[Number | None]
    low: NotRequired[Number | None]
    high: NotRequired[Number | None]
    count: NotRequired[Clips | None]
    floor: NotRequired[Number | None]
    floor_count: NotRequired[Clips | None]
    floor_of: NotRequired[str | None]
    better: NotRequired[str | None]


class DifferenceFound(Record):
    """Of two models' clips by pairs, as `evaluation.paired.Difference`."""

    value: NotRequired[Number | None]
    other: NotRequired[Number | None]
    difference: NotRequired[Number | None]
    low: NotRequired[Number | None]
    high: NotRequired[Number | None]
    p: NotRequired[Number | None]
    effect: NotRequired[Number | None]
    wins: NotRequired[Number | None]
    relative: NotRequired[Number | None]
    pairs: NotRequired[Clips | None]
    units: NotRequired[Clips | None]
    better: NotRequired[str | None]


class Measured(Record):
    """A line of validation.jsonl; its other keys are figures."""

    step: Step
    weights: NotRequired[str]
    samples: NotRequired[Clips]
    bins: NotRequired[list[Bin]]
    scores: NotRequired[dict[str, ScoreFound]]


class ClipFound(Record):
    """A clip in evaluation/scores.json, with its own scores."""

    file: str
    start: NotRequired[Clips]
    caption: NotRequired[str | None]
    seed: NotRequired[int | None]
    scores: NotRequired[dict[str, Number | None]]


class Evaluation(Record):
    """evaluation/scores.json"""

    scores: NotRequired[dict[str, ScoreFound]]
    compared: NotRequired[dict[str, DifferenceFound]]
    settings: NotRequired[dict[str, str | int | float | bool | list | dict | None]]
    notes: NotRequired[list[str]]
    clips: NotRequired[list[ClipFound]]


class Faults:
    """What is not whole, a line each."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, name: str, *faults: str) -> None:
        said = [fault if len(fault) <= 200 else f"{fault[:200]}..." for fault in faults[:SAID]]
        more = f"; and {len(faults) - SAID} more" if len(faults) > SAID else ""
        self.lines.append(f"{name}: {'; '.join(said)}{more}")


def loads(text: str) -> Any:
    """JSON without what is no measurement: NaN, infinity and absurd numbers become None. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_float, parse_int=_int)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _float(text: str) -> float | None:
    value = float(text)
    return value if abs(value) <= MOST else None


def _int(text: str) -> int | None:
    return int(text) if len(text) <= 18 else None


def there(path: Path, root: Path, faults: Faults) -> bool:
    """Whether a file of the run can be opened; a fault where it is there, but is no file."""
    if not (path.exists() or path.is_symlink()):
        return False
    if fault := file_fault(path, root):
        faults.add(path.relative_to(root).as_posix(), fault)
        return False
    return True


def read_file(path: Path, root: Path, faults: Faults, most: int = MOST_JSON) -> str | None:
    """Its text; None where there is none."""
    if not there(path, root, faults):
        return None
    name = path.relative_to(root).as_posix()
    try:
        if (size := path.stat().st_size) > most:
            faults.add(name, f"has {size:,} bytes: it is not what its name says")
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        faults.add(name, f"cannot be read ({error})")
        return None
    if not text.strip():
        faults.add(name, "is empty")
    return text if text.strip() else None


def read_json(path: Path, root: Path, faults: Faults, kind: type[T] | None = None) -> T | Any:
    """What the file holds, of this kind where one is given; None where there is nothing of use."""
    text = read_file(path, root, faults)
    if text is None:
        return None
    name = path.relative_to(root).as_posix()
    try:
        found = loads(text)
    except ValueError as error:
        faults.add(name, f"is damaged ({error})")
        return None
    if kind is None:
        return found
    found, wrong = salvaged(found, kind)
    if wrong:
        faults.add(name, *wrong)
    return found


def read_config(path: Path, root: Path, faults: Faults) -> tuple[str, dict[str, Any] | None]:
    """Text and mapping."""
    text = read_file(path, root, faults, CONFIG)
    if text is None:
        return "", None
    try:
        if "&" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError("repeats parts of itself, which no run does and can make gigabytes of a few lines")
        config = parse_yaml(text, path.name)
    except (UserError, yaml.YAMLError, RecursionError, ValueError) as error:
        faults.add(path.name, str(error) or "nested too deep")
        return text, None
    if not isinstance(config, dict):
        faults.add(path.name, "holds no mapping of sections")
        return text, None
    return text, {str(key): value for key, value in config.items()}


def records(path: Path, root: Path, faults: Faults) -> Iterator[dict[str, Any]]:
    """The lines of a log, if it is there; one cut short by a kill is left out."""
    if not there(path, root, faults):
        return
    wrong, number, found = [], 0, 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LINE):
                number += 1
                record = _record(line)
                if record is not None:
                    found += 1
                    yield record
                elif line.endswith(b"\n") or len(line) == LINE:
                    wrong.append(number)
                while len(line) == LINE and not line.endswith(b"\n"):  # the rest of an absurd one
                    line = file.readline(LINE)
    except OSError as error:
        faults.add(path.name, f"cannot be read beyond line {number} ({error.strerror or error})")
    if wrong:
        faults.add(path.name, f"{len(wrong)} of {number} lines are no records, line {wrong[0]} the first")
    elif not found:
        faults.add(path.name, "holds no record" if number else "is empty")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = loads(line.decode("utf-8", "replace"))
    except ValueError:
        return None
    right = isinstance(record, dict) and type(record.get("step")) is int and 0 <= record["step"] <= 10**9
    return record if right and len(record) <= KEYS else None


def read_measured(path: Path, root: Path, faults: Faults) -> list[Measured]:
    """The lines of validation.jsonl by step."""
    lines, wrong = [], []
    for record in records(path, root, faults):
        found, said = salvaged(record, Measured)
        wrong += said
        if found is not None:
            lines.append(found)
    if wrong:
        faults.add(path.name, *wrong)
    return sorted(lines, key=lambda line: line["step"])


def read_columns(path: Path, root: Path, faults: Faults) -> dict[str, np.ndarray]:
    """The numbers of metrics.jsonl by key, in little memory: eight bytes each, a line at a time."""
    columns: dict[str, array] = {"step": array("d")}
    count = 0
    for record in records(path, root, faults):
        for key, value in record.items():
            if isinstance(value, int | float) and (key in columns or len(columns) < KEYS):
                column = columns.setdefault(key, array("d"))
                column.extend([math.nan] * (count - len(column)))
                column.append(value)
        count += 1
    for column in columns.values():
        column.extend([math.nan] * (count - len(column)))
    return {key: np.array(column) for key, column in columns.items()}
