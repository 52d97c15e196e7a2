"""What a run needs before its first step: the processes, its steps, and that it is the run it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    is_tensorboard_available,
    is_wandb_available,
    parse_flag_from_env,
)

from ..data.plan import Plan
from ..errors import UserError
from ..world import check_strategy, check_world
from .checkpoint import CheckpointStore
from .config import TrainingConfig
from .load import to_dict
from .strategy import load_whole
from .streams import make_streams
from .task import Task

# what may change between a run and its continuation; all else would make it another run
MAY_CHANGE = (
    "train.steps",
    "train.compile",
    "train.mixed_precision",  # settled by `compute.settle`
    "train.max_bad_steps",
    "train.sequence_parallel",
    "data.workers",
    "data.timeout_s",
    "data.retry_s",
    "checkpoint",
    "log",
    "samples",
    "validation",
    "attention",
    "run.dir",
    "run.dry_run",
)
READ_SHARE = 1 / 4  # of a pack, that the windows of one read take at most


def make_plan(config: TrainingConfig, task: Task) -> Plan:
    """The run's steps, from its configuration and data alone."""
    data, reads = config.data, None
    if task.clips is not None and data.frames_per_read is not None:
        most = int(data.tokens_per_pack * READ_SHARE)
        reads = task.clips.reads(task.tokens, frames=data.frames_per_read, most_tokens=most)
    return Plan(
        task.tokens,
        budget=data.tokens_per_pack,
        packs=data.packs_per_step,
        seed=config.run.seed,
        cost=task.costs,
        streams=make_streams(task.sources, task.source_of, task.is_image, data.weights, data.image_share),
        reads=reads,
    )


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The Accelerator, checked: the world and the strategy must be those that the launcher asked for.

    Its own mixed precision stays off: autocast of the forward pass is the strategy's.
    """
    check_trackers(config.log.trackers)
    trackers = [] if config.run.dry_run else list(config.log.trackers)
    deepspeed = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    # gradients live in DDP's buckets (`Strategy.keeps_gradients`), not beside them: 4 bytes a parameter less
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if deepspeed and not torch.cuda.is_available():  # without it DeepSpeed on CPUs leaves each process alone
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    accelerator = Accelerator(
        mixed_precision="no",
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=str(config.run.dir), logging_dir=str(config.run.dir / "logs")),
        kwargs_handlers=handlers,
    )
    check_world(accelerator.num_processes)
    check_strategy(accelerator)
    load_whole(accelerator)
    if trackers:
        init = {"wandb": {"dir": str(config.run.dir)}} if "wandb" in trackers else {}
        try:
            accelerator.init_trackers(config.log.project, init_kwargs=init)
        except Exception as error:  # of another package: no key, no network, no place to write
            why = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"log.trackers={list(config.log.trackers)} cannot start ({why:.300}): mend it (wandb: `wandb login`, "
                "or WANDB_MODE=offline), or leave it out"
            ) from error
    return accelerator


def check_trackers(trackers: Sequence[str]) -> None:
    """Raises UserError for one that is not installed: accelerate would leave it out without a word."""
    installed = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    for name in trackers:
        if not installed[name]():
            left = [other for other in trackers if other != name]
            raise UserError(
                f"log.trackers names {name}, which is not installed: pip install {name}, or set "
                f"log.trackers=[{','.join(left)}]"
            )


def check_same_run(config: TrainingConfig) -> None:
    """Raises UserError where `run.dir` holds checkpoints of a run with another configuration."""
    saved = config.run.dir / "config.yaml"
    if not saved.is_file() or not CheckpointStore(config.run.dir / "checkpoints").steps():
        return
    before, now = (_flat(c) for c in (yaml.safe_load(saved.read_text(encoding="utf-8")), to_dict(config)))
    free = tuple(f"{key}." for key in MAY_CHANGE)
    changed = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if str(before.get(key)) != str(now.get(key)) and not f"{key}.".startswith(free)
    ]
    if changed:
        raise UserError(
            f"{config.run.dir} holds checkpoints of a run with another configuration ({'; '.join(changed)}): "
            "choose another run.dir, or remove that folder"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
