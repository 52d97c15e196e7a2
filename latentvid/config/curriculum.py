"""`stages:` of a configuration: a curriculum, whose stages are trained one after another in one run.

Each entry names what differs from the rest of the file: a stage is the file with its entry laid over it. This is not
the key `stage`, which says what is trained (`dit` or `vae`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from ..errors import UserError
from .conversion import build
from .entries import flat, is_of_the_run, names_of
from .parsing import check_keys, to_dict
from .yaml_files import ConfigError, merge

C = TypeVar("C")

MOST = 100


@dataclasses.dataclass(frozen=True)
class CurriculumStage(Generic[C]):
    """A stage as it is trained: steps `begin` + 1 to `end` of the run.

    name: "" of the one stage of a run without `stages`. number: from 1; of: how many there are. config: its own, whole.
    """

    name: str
    number: int
    of: int
    config: C
    begin: int
    end: int

    @property
    def steps(self) -> int:
        return self.end - self.begin

    @property
    def last(self) -> bool:
        return self.number == self.of

    def __str__(self) -> str:
        """As lines for people name it: "" where there is one."""
        return f"stage {self.name} ({self.number} of {self.of}, steps {self.begin + 1} to {self.end})" * bool(self.name)


def curriculum(config: C) -> list[CurriculumStage[C]]:
    """The stages of a run's configuration; without `stages`, all of it is the one stage.

    Raises ConfigError, which names stage and key, for an entry that no configuration can be made of.
    """
    if not config.stages:
        return [CurriculumStage("", 1, 1, config, 0, config.train.steps)]
    if len(config.stages) > MOST:
        raise ConfigError(f"stages has {len(config.stages)} entries: at most {MOST} can be")
    names, whole = names_of(config.stages), to_dict(dataclasses.replace(config, stages=()))
    found: list[CurriculumStage[C]] = []
    for name, entry in zip(names, config.stages, strict=True):
        begin = found[-1].end if found else 0
        with errors_of(name):
            own = _laid_over(type(config), whole, {key: value for key, value in entry.items() if key != "name"})
        found.append(CurriculumStage(name, len(found) + 1, len(names), own, begin, begin + own.train.steps))
    return found


@contextmanager
def errors_of(stage: CurriculumStage | str) -> Iterator[None]:
    """What is wrong inside is said with the stage's name, where it has one."""
    name = stage if isinstance(stage, str) else stage.name
    try:
        yield
    except UserError as error:
        if not name:
            raise
        raise ConfigError(f"stages: in {name}: {error}") from None


def stage_at(stages: Sequence[CurriculumStage[C]], step: int) -> CurriculumStage[C]:
    """The one that makes a step (from 1): of step 0 the first, of steps after the end the last."""
    return next((stage for stage in stages if step <= stage.end), stages[-1])


def _laid_over(cls: type[C], whole: Mapping[str, Any], entry: Mapping[str, Any]) -> C:
    """The configuration with an entry's values over it; ConfigError for a key that no stage can have of its own."""
    check_keys(cls, entry, "", cls)
    if "stages" in entry:
        raise ConfigError("stages cannot lie within each other")
    for key in flat(entry):
        if is_of_the_run(key):
            raise ConfigError(f"{key} is the same in all stages: set it once, above them")
    return build(cls, merge(whole, entry), "")
