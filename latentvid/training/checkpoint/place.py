"""Where a run stands in its curriculum (`stages:`), by its newest checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ...config.curriculum import CurriculumStage, stage_at
from .records import State

C = TypeVar("C")


def next_stage(stages: Sequence[CurriculumStage[C]], state: State | None) -> CurriculumStage[C]:
    """The stage that goes on from a checkpoint's state: the one after its own where that is over.

    It is over when the model was looked at after its last step: a run that was asked to stop there saves first.
    """
    if state is None:
        return stages[0]
    stage, step = stage_at(stages, state["step"]), state["step"]
    over = step >= stage.end and state.get("looked", step) >= step
    return stages[stage.number] if over and not stage.last else stage


def begins(stage: CurriculumStage, state: State | None) -> bool:
    """Whether a stage begins from a checkpoint's state, and does not go on from it."""
    return state is None or state["step"] == stage.begin
