"""The processes of a launch, checked: accelerate 1.15 can start several that each believe they are alone."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, parse_flag_from_env

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


def check_strategy(accelerator: Accelerator) -> None:
    """Raises UserError unless the processes reach each other and train as the launch's configuration asked.

    accelerate 1.15 turns FSDP and DeepSpeed configurations into plain DDP where ACCELERATE_USE_CPU is set.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpus = "on CPUs launch plain DDP: " + CPU_LAUNCH.format(n=asked)
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        found = accelerator.distributed_type
        if parse_flag_from_env(f"ACCELERATE_USE_{kind.value}") and found != kind:
            raise UserError(
                f"the launch asked for {kind.value}, but accelerate made it {found.value}: unset "
                f"ACCELERATE_USE_CPU, which does that; {on_cpus}"
            )
    answer = int(accelerator.reduce(torch.ones((), device=accelerator.device), reduction="sum"))
    if answer != asked:
        raise UserError(f"the launcher started {asked} processes, but {answer} answer each other; {on_cpus}")


def process_state() -> PartialState:
    """accelerate's state of the launched processes, for work shared without an Accelerator."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    check_world(state.num_processes)
    return state
