"""What a run needs before its first step: the processes, and its steps."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    is_tensorboard_available,
    is_wandb_available,
    parse_flag_from_env,
)

from ..config.curriculum import CurriculumStage
from ..config.parsing import to_dict
from ..config.schema import TrainingConfig
from ..config.sections import several
from ..data.plan.plan import Plan
from ..data.plan.streams import make_streams
from ..errors import UserError
from ..files import write_whole
from ..world import check_shards, check_strategy, check_world
from . import adamw8bit
from .parallel.strategy import load_whole
from .task import Task

logger = logging.getLogger(__name__)

WANDB_ID = "logs/wandb_id"  # below the run's folder
READ_SHARE = 1 / 2  # of a step, that the windows of one read, which share a pack, take at most


def make_plan(config: TrainingConfig, task: Task) -> Plan:
    """The run's steps, from its configuration and data alone."""
    data, reads = config.data, None
    if task.clips is not None and data.frames_per_read is not None:
        most = min(data.tokens_per_pack, int(data.tokens_per_pack * data.packs_per_step * READ_SHARE))
        reads = task.clips.reads(task.tokens, frames=data.frames_per_read, most_tokens=most)
    return Plan(
        task.tokens,
        budget=data.tokens_per_pack,
        packs=data.packs_per_step,
        seed=config.run.seed,
        cost=task.costs,
        streams=make_streams(task.sources, task.source_of, task.is_image, task.source_weights, data.image_share),
        reads=reads,
        parts=np.bincount(task.source_of, minlength=len(task.sources)).tolist(),
    )


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The Accelerator, checked: the world and the strategy must be those that the launcher asked for.

    Its own mixed precision stays off: autocast of the forward pass is the strategy's.
    """
    check_trackers(config.log.trackers)
    check_shards()
    if config.optim.name == adamw8bit.NAME:
        adamw8bit.check_there()
    trackers = [] if config.run.dry_run else list(config.log.trackers)
    # DeepSpeed on CPUs leaves each process alone unless gloo is named
    gloo = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") and not torch.cuda.is_available()
    # 10 minutes, NCCL's own limit, are passed over by accelerate, which leaves gloo its 30: so a microsecond more
    limit = timedelta(seconds=config.train.collective_timeout_s, microseconds=1)
    # gradients live in DDP's buckets (`Strategy.keeps_gradients`), not beside them: 4 bytes a parameter less
    handlers = [
        DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        InitProcessGroupKwargs(timeout=limit, **({"backend": "gloo"} if gloo else {})),
    ]
    accelerator = Accelerator(
        mixed_precision="no",
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=str(config.run.dir), logging_dir=str(config.run.dir / "logs")),
        kwargs_handlers=handlers,
    )
    check_world(accelerator.num_processes)
    check_strategy(accelerator)
    load_whole(accelerator)
    return accelerator


def warn_of_missing_data(stages: Sequence[CurriculumStage[TrainingConfig]]) -> None:
    """Says which tables and caches of a curriculum's later stages are not there yet: they may be made meanwhile."""
    for stage in stages[1:]:
        for section in ("data", "validation"):
            for key in ("manifest", "latents"):
                for path in several(getattr(getattr(stage.config, section), key, None)):
                    if not path.exists():
                        logger.warning("stage %s: %s.%s %s does not exist yet", stage.name, section, key, path)


def start_trackers(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Once the folder is this run's: they write there at once."""
    if not config.log.trackers:
        return
    init = {"wandb": of_wandb(config)} if "wandb" in config.log.trackers and accelerator.is_main_process else {}
    try:
        accelerator.init_trackers(config.log.project, init_kwargs=init)
    except Exception as error:  # of another package: no key, no network, no place to write
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"log.trackers={list(config.log.trackers)} cannot start ({why:.300}): mend it (wandb: `wandb login`, "
            "or WANDB_MODE=offline), or leave it out"
        ) from error


def of_wandb(config: TrainingConfig) -> dict[str, Any]:
    """What `wandb.init` is given: the configuration, and the run's id, kept in its folder, so that a run which goes on
    after a stop goes on in the same curve. The main process's."""
    file = config.run.dir / WANDB_ID
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, uuid.uuid4().hex[:16])
    name = file.read_text(encoding="utf-8").strip()
    if not re.fullmatch(r"[\w-]{1,64}", name):
        raise UserError(f"{file} holds no id of a run in wandb: remove it, and a new one is made")
    return {
        "id": name,
        "resume": "allow",
        "name": config.run.dir.name,
        "dir": str(config.run.dir),
        "config": to_dict(config),
    }


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
