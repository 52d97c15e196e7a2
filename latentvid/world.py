"""The processes of a launch, checked: accelerate 1.15 can start several that each believe they are alone."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, parse_flag_from_env

from .errors import UserError
from .words import counted

T = TypeVar("T")

PATIENCE = 21_600.0  # seconds: to hash a terabyte may take hours
_meetings = itertools.count()  # the same on all processes, which meet in the same order

CPU_LAUNCH = (
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {n} --num_machines 1 "
    "--mixed_precision no --dynamo_backend no SCRIPT ..."
)


def usable_device(asked: torch.device | str | None) -> torch.device:
    """The device that is asked for; None: CUDA where there is one. Raises UserError for one that is not here."""
    asked = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"device {asked} cannot be used here: {str(error).splitlines()[0]}") from error
    return torch.device(asked)


def check_world(found: int) -> None:
    """Raises UserError unless `found` processes work together, as many as the launcher started."""
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if found != asked:
        raise UserError(
            f"the launcher started {counted(asked, 'process')}, but this one works in a group of "
            f"{found}; on CPUs launch with: " + CPU_LAUNCH.format(n=asked)
        )
    # `accelerate launch --cpu --num_processes 2` starts one process; that it was asked for more shows in nothing else
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate was asked for several processes but started one; on CPUs launch with: "
            + CPU_LAUNCH.format(n="N")
            + " (where one is meant: --num_processes 1, with MASTER_PORT unset)"
        )


def check_shards() -> None:
    """Raises UserError where the launch's file shares the processes out in another way than copies of FSDP2's shards,
    or its numbers are not those of the processes; before accelerate, which fails then without saying how to mend it."""
    if not parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return
    sizes = {
        name: int(os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "1"))
        for name in ("dp_replicate", "dp_shard", "tp", "cp", "sp")
    }
    for name in ("tp", "cp", "sp"):
        if sizes[name] > 1:
            raise UserError(
                f"parallelism_config_{name}_size={sizes[name]} is not supported: leave it out; packs are shared by "
                "train.sequence_parallel"
            )
    copies, shards, world = sizes["dp_replicate"], sizes["dp_shard"], int(os.environ.get("WORLD_SIZE", "1"))
    if shards < 2 or not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise UserError(
            f"parallelism_config_dp_shard_size={shards}: copies of shards want FSDP2 and 2 shards or more: take "
            "configs/accelerate/hsdp.yaml, or ddp.yaml, where each process holds all"
        )
    if copies * shards != world:
        raise UserError(
            f"{copies} copies of {shards} shards are {copies * shards} processes, and the launcher started {world}: "
            f"give --parallelism_config_dp_replicate_size and --parallelism_config_dp_shard_size of product {world}"
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
        raise UserError(f"the launcher started {counted(asked, 'process')}, but {answer} answer each other; {on_cpus}")


def limit_exchanges(seconds: float) -> None:
    """How long an exchange of any group of processes waits for the slowest before it fails, in seconds.

    For when all groups are made: those of meshes (HSDP), DeepSpeed and Ulysses begin with torch's own limit, 10 minutes
    under NCCL, whatever the first group was given.
    """
    if not dist.is_initialized():
        return
    c10d = dist.distributed_c10d
    limit = getattr(c10d, "set_timeout", None) or c10d._set_pg_timeout  # older releases have the second alone
    for group in list(c10d._world.pg_map):
        limit(timedelta(seconds=seconds), group)


def shards_weights() -> bool:
    """Whether the launch gives each process a part of the weights by FSDP2."""
    return bool(AcceleratorState._shared_state) and AcceleratorState().distributed_type == DistributedType.FSDP


def check_calls(network: str) -> None:
    """For a network that a pack may call several times, once for each of its shapes. Raises UserError where the launch
    shards weights that every call gathers: processes with unequally many calls would wait for each other for ever."""
    if not AcceleratorState._shared_state:  # without an Accelerator nothing is sharded
        return
    state, name = AcceleratorState(), None
    if state.distributed_type == DistributedType.FSDP:
        name = "FSDP2"
    elif state.distributed_type == DistributedType.DEEPSPEED and state.deepspeed_plugin.zero_stage == 3:
        name = "ZeRO-3"
    if name is not None:
        raise UserError(
            f"{name} gathers weights in every forward pass, and {network} makes one for each shape of a pack, so that "
            "processes would wait for each other for ever: launch DDP, ZeRO-1 or ZeRO-2"
        )


class Processes(PartialState):
    """accelerate's state of the launched processes, which wait for each other as long as their work takes."""

    def wait_for_everyone(self) -> None:
        meet()


def process_state() -> PartialState:
    """The launched processes, for work shared without an Accelerator."""
    state = Processes(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    check_world(state.num_processes)
    return state


def meet() -> None:
    """Waits until all processes are here, for hours if need be, for work that some have more of than others.

    A collective will not do: NCCL and gloo end it, and with it the run, after ten minutes.
    """
    if _alone():
        return
    store, key = _store(), f"latentvid/{next(_meetings)}"
    if store.add(f"{key}/here", 1) == torch.distributed.get_world_size():
        store.set(f"{key}/all", "")
    _wait(store, f"{key}/all")


def from_main(make: Callable[[], T]) -> T:
    """What `make` gives on the main process (plain JSON), for all; they wait for it as in `meet`.

    A UserError there is raised by all.
    """
    if _alone():
        return make()
    store, key = _store(), f"latentvid/{next(_meetings)}"
    if torch.distributed.get_rank() == 0:
        try:
            made = make()
        except UserError as error:
            store.set(key, json.dumps({"error": str(error)}))
            raise
        store.set(key, json.dumps({"made": made}))
        return made
    _wait(store, key)
    found = json.loads(store.get(key))
    if "error" in found:
        raise UserError(found["error"])
    return found["made"]


def _alone() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1


def shared_store() -> torch.distributed.Store | None:
    """What the processes of a launch can leave each other words in; None where there is one process."""
    return None if _alone() else _store()


def _store() -> torch.distributed.Store:
    """Where the processes found each other; torch has no public name for it."""
    return torch.distributed.distributed_c10d._get_default_store()


def _wait(store: torch.distributed.Store, key: str) -> None:
    """Looks again and again: one long wait would hold the store, which torch's own threads need."""
    end, pause = time.monotonic() + PATIENCE, 0.001
    while not store.check([key]):
        if time.monotonic() > end:
            raise TimeoutError(f"the other processes did not come within {PATIENCE / 3600:.0f} hours")
        time.sleep(pause)
        pause = min(1.5 * pause, 0.5)
