"""`--dry-run`: what a run would be, without its first step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from accelerate import Accelerator

from ...config.curriculum import CurriculumStage, curriculum, errors_of
from ...config.schema import TrainingConfig
from ...errors import UserError
from ...words import counted
from ...world import from_main
from ..checkpoint.checkpoint import CheckpointStore
from ..checkpoint.same_run import check_same_run
from ..compute import settle
from ..launch import make_accelerator, make_plan
from ..task import MakeTask
from .preflight import MFU, Outlook, preflight
from .words import duration, in_bytes, indented, si


def dry_run(config: TrainingConfig, make_task: MakeTask) -> None:
    """Says what the run, and each stage of it, would be; writes nothing."""
    accelerator = make_accelerator(config)
    config = make_task.settled(config)
    changed = from_main(lambda: check_same_run(config))
    config, _ = settle(config, accelerator.device)
    if changed and accelerator.is_main_process:
        print(f"{config.run.dir} would go on with another configuration: {'; '.join(changed)}\n")
    stages = curriculum(config)
    world = _processes(accelerator.num_processes, [stage.config.train.sequence_parallel for stage in stages])
    outlooks = [_one(stage, make_task, accelerator, world) for stage in stages]
    if accelerator.is_main_process and len(stages) > 1:
        print(f"\n{compared(stages, outlooks)}")


def _processes(launched: int, shared: Sequence[int]) -> int:
    """For how many the run is planned: those that are launched; where one asks alone, as many as share a pack."""
    if launched == 1:
        return math.lcm(*shared)
    if wrong := [size for size in shared if launched % size]:
        raise UserError(
            f"train.sequence_parallel is {wrong[0]}, which does not divide the "
            f"{counted(launched, 'process')}: launch a multiple "
            f"of {wrong[0]}"
        )
    return launched


def _one(
    stage: CurriculumStage[TrainingConfig], make_task: MakeTask, accelerator: Accelerator, world: int
) -> Outlook | None:
    """Says what a stage would be on `world` processes; None on processes that say nothing."""
    config = stage.config
    with errors_of(stage):
        task = make_task(config, accelerator.device)
        task.follow(CheckpointStore(config.run.dir / "checkpoints").path(stage.begin) if stage.begin else None)
        plan = make_plan(config, task)
    if not accelerator.is_main_process:
        return None
    if stage.name:
        print(f"\n=== {stage} ===\n")
    found = preflight(config, task, plan, world=world, device=accelerator.device)
    print(found.text)
    if task.origin is not None and not stage.begin:
        print(f"\n{task.origin.summary()}")
    if (held_out := task.held_out()) is not None:
        print(f"\n{held_out.summary()}")
    return found


def compared(stages: Sequence[CurriculumStage], outlooks: Sequence[Outlook]) -> str:
    """The stages of a curriculum side by side, and which of them is the largest."""
    rows = [("stage", "steps", "samples a step", "tokens a step", "fill", "FLOPs a step", "run", "activations", "most")]
    for stage, o in zip(stages, outlooks, strict=True):
        s = o.simulation
        figures = (f"{stage.steps:,}", f"{s.samples:,.1f}", f"{s.tokens:,.0f}", f"{s.fill:.3f}", si(s.flops))
        rows.append((stage.name, *figures, duration(o.seconds), in_bytes(o.activations), in_bytes(o.most)))
    steps, seconds = sum(stage.steps for stage in stages), sum(o.seconds for o in outlooks)
    most = max(range(len(stages)), key=lambda i: outlooks[i].most)
    return "\n".join(
        [
            f"all {len(stages)} stages, {counted(steps, 'step')}, {duration(seconds)} at {MFU:.0%} of the peak:",
            indented(rows),
            f"  the largest is {stages[most].name}: a step of it holds {in_bytes(outlooks[most].most)} on a device at "
            f"a time ({outlooks[most].strategy}); what it fits on, the others fit on",
        ]
    )
