"""`--dry-run`: what a run would be, without its first step."""

from __future__ import annotations

from ...config.schema import TrainingConfig
from ...world import from_main
from ..checkpoint.run_folder import check_same_run
from ..compute import settle
from ..launch import make_accelerator, make_plan
from ..task import MakeTask
from .preflight import preflight


def dry_run(config: TrainingConfig, make_task: MakeTask) -> None:
    """Says what the run would be; writes nothing."""
    accelerator = make_accelerator(config)
    from_main(lambda: check_same_run(config))
    config, _ = settle(config, accelerator.device)
    task = make_task(config, accelerator.device)
    plan = make_plan(config, task)
    if accelerator.is_main_process:
        print(preflight(config, task, plan, world=accelerator.num_processes, device=accelerator.device))
        if (held_out := task.held_out()) is not None:
            print(f"\n{held_out.summary()}")
