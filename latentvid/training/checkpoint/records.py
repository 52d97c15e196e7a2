"""What the small files of a run's folder hold, checked: a wrong type is named by file and key, never met later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ...errors import UserError
from ...files import read_json

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
Count = Annotated[int, Field(ge=0, lt=2**63)]
Step = Annotated[int, Field(ge=0, le=10**9)]
Number = Annotated[float, Field(ge=-1e300, le=1e300)]  # differences and squares of which are numbers too


class Record(TypedDict):
    """Other keys are kept as they are: another version's."""

    __pydantic_config__ = STRICT


class FileEntry(Record):
    size: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Record):
    """manifest.json of a checkpoint: its files by their names, relative to it."""

    step: Step
    files: dict[str, FileEntry]


class Best(Record):
    """best.json"""

    step: Step
    metric: str
    weights: Literal["ema", "raw"]
    value: Number


class PlanState(Record):
    """Which of these there must be, and that they fit the data, the plan itself says."""

    samples: NotRequired[Count]
    tokens: NotRequired[Count]
    packing: NotRequired[dict[str, int | float | str | None]]
    prints: NotRequired[dict[str, str]]
    window: NotRequired[Count]
    streams: NotRequired[list[Annotated[list[Count], Field(min_length=2, max_length=2)]]]
    carried: NotRequired[list[Count]]
    place: NotRequired[Count]
    numbers: NotRequired[Count]
    first: NotRequired[Count]
    parts: NotRequired[list[Count]]
    grown: NotRequired[list[Annotated[list[Count], Field(min_length=2)]]]


class Identity(Record):
    """What the data were, in runs of samples: see `data.identity`."""

    samples: Count
    prints: dict[str, list[str]]
    parts: NotRequired[list[Count]]


class State(Record):
    """state.json of a checkpoint."""

    step: Step
    plan: PlanState
    ema_updates: Count
    skipped_steps: Count
    bad_steps: Count
    looked: NotRequired[Step]
    best: NotRequired[Best | None]
    written_by: NotRequired[str]
    data: NotRequired[Identity | None]
    model: NotRequired[dict[str, Any]]
    base: NotRequired[dict[str, str] | None]


class Shape(Record):
    grid: list[Count]
    count: Count


class PlanFacts(Record):
    samples: NotRequired[Count]
    tokens: NotRequired[Count]
    tokens_per_pack: NotRequired[Count]
    packs_per_step: NotRequired[Count]
    steps_per_epoch: NotRequired[Number]
    shapes: NotRequired[list[Shape]]


class Start(Record):
    time: NotRequired[str]
    step: NotRequired[Step]
    strategy: NotRequired[str]
    world: NotRequired[Count]
    changed: NotRequired[list[str]]


class StageFacts(Record):
    """Of a stage of `stages:`, as far as it has begun."""

    number: Count
    name: NotRequired[str]
    begin: NotRequired[Step]
    steps: NotRequired[Count]
    data: NotRequired[str]
    trained: NotRequired[list[dict[str, Any]] | None]
    plan: NotRequired[PlanFacts]


class Machine(Record):
    cpu: NotRequired[str | None]
    cores: NotRequired[int | None]
    memory_gib: NotRequired[Number | None]
    gpu: NotRequired[str | None]


class About(Record):
    """run.json"""

    started: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    machine: NotRequired[Machine]
    strategy: NotRequired[str]
    world: NotRequired[Count]
    parameters: NotRequired[Count]
    data: NotRequired[str]
    init: NotRequired[dict[str, Any] | None]
    plan: NotRequired[PlanFacts]
    starts: NotRequired[list[Start]]
    stages: NotRequired[list[StageFacts]]


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def read_record(path: Path, kind: type[T], root: Path | None = None) -> T:
    """What a JSON file holds, of this kind. UserError names the file and its first wrong key."""
    return checked(read_json(path, root), kind, str(path))


def read_best(run: Path) -> Best | None:
    """What RUN/best.json holds; None where it is not there. Raises UserError where it is damaged."""
    file = run / "best.json"
    return read_record(file, Best, run) if file.exists() or file.is_symlink() else None


def checked(found: Any, kind: type[T], where: str) -> T:
    try:
        return _adapter(kind).validate_python(found)
    except ValidationError as error:
        raise UserError(f"{where} is damaged: {_said(error.errors()[0])}") from None


def salvaged(found: Any, kind: type[T]) -> tuple[T | None, list[str]]:
    """What is right of it, and what is not, by key; None where nothing is. A list with a fault goes whole."""
    faults: list[str] = [] if found is not None else ["its content: there is none"]
    while found is not None:
        try:
            return _adapter(kind).validate_python(found), faults
        except ValidationError as error:
            wrong = error.errors()
        faults += [_said(one) for one in wrong]
        for one in wrong:
            found = _without(found, one["loc"][:-1] if one["type"] == "missing" else one["loc"])
    return None, faults


def _without(found: Any, where: Sequence[str | int]) -> Any:
    """A copy without what lies there; None where nothing can be kept."""
    if not (where and isinstance(found, Mapping) and where[0] in found):
        return None
    inner = _without(found[where[0]], where[1:])
    rest = {key: value for key, value in found.items() if key != where[0]}
    return rest if inner is None else {**rest, where[0]: inner}


def _said(error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"])) or "its content"
    return f"{key}: {error['msg'][:1].lower()}{error['msg'][1:]}"
