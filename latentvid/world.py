"""The processes of a launch, checked: accelerate 1.15 can start several that each believe they are alone."""

from __future__ import annotations

import os

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from .errors import UserError

CPU_LAUNCH = (
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {n} --num_machines 1 "
    "--mixed_precision no --dynamo_backend no SCRIPT ..."
)


def check_world(found: int) -> None:
    """Raises UserError unless `found` processes work together, as many as the launcher started."""
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if found != asked:
        raise UserError(
            f"the launcher started {asked} processes, but this one works in a group of {found}; on CPUs launch with: "
            + CPU_LAUNCH.format(n=asked)
        )
    # `accelerate launch --cpu --num_processes 2` starts one process; that it was asked for more shows in nothing else
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate was asked for several processes but started one; on CPUs launch with: "
            + CPU_LAUNCH.format(n="N")
            + " (where one is meant: --num_processes 1, with MASTER_PORT unset)"
        )


def process_state() -> PartialState:
    """accelerate's state of the launched processes, for work shared without an Accelerator."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    check_world(state.num_processes)
    return state
