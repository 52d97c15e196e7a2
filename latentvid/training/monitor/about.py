"""RUN/run.json: what a run was made with, and on what, for its page and for whoever repeats it."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from ...config.curriculum import CurriculumStage
from ...config.schema import TrainingConfig
from ...data.plan.plan import Plan
from ...errors import UserError
from ...files import kept_beside, read_json, written_whole
from ...versions import installed
from ..checkpoint.records import About, salvaged
from ..compute import Compute
from ..task import Task

logger = logging.getLogger(__name__)

PACKAGES = ("latentvid", "torch", "torchvision", "timm", "diffusers", "transformers", "accelerate", "deepspeed", "av")
SHAPES = 20  # that are listed, those with the most tokens


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    return installed(PACKAGES)


def machine() -> dict[str, Any]:
    """Of this process's node: processor, cores, memory, GPU."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": f"{len(gpus)} x {gpus[0]}" if gpus else None,
    }


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def plan_summary(task: Task, plan: Plan) -> dict[str, Any]:
    """Samples and tokens of an epoch, the packs of a step, and the samples' shapes in tokens."""
    counts, tokens = task.grids.counts(), int(task.tokens.sum())
    ordered = sorted(counts.items(), key=lambda item: -math.prod(item[0]) * item[1])
    return {
        "samples": len(task.grids),
        "tokens": tokens,
        "tokens_per_pack": plan.budget,
        "packs_per_step": plan.packs,
        "steps_per_epoch": tokens / (plan.budget * plan.packs),  # if packs are full
        "shapes": [{"grid": list(grid), "count": n} for grid, n in ordered[:SHAPES]],
    }


def _before(file: Path) -> About:
    """What is right of the file of earlier starts; a damaged one is kept beside it."""
    if not file.is_file():
        return {}
    try:
        found, faults = salvaged(read_json(file), About)
    except UserError as error:
        found, faults = None, [str(error)]
    if faults:
        kept = kept_beside(file)
        logger.warning("%s is damaged (%s) and is written anew; it is kept as %s", file, "; ".join(faults[:3]), kept)
    return found or {}


def write_about(
    stage: CurriculumStage[TrainingConfig],
    task: Task,
    plan: Plan,
    parameters: int,
    *,
    step: int,
    strategy: str,
    world: int,
    compute: Compute,
    again: bool = False,
    changed: Sequence[str] = (),
) -> None:
    """Writes RUN/run.json at a start from `step`; earlier starts stay listed where the run goes on.

    again: it is no start of the run, but of its next stage. Of a curriculum each stage that has begun stays listed.
    changed: what of the configuration is another since the start before, in words.
    """
    file, now = stage.config.run.dir / "run.json", datetime.now(UTC).isoformat(timespec="seconds")
    before = _before(file) if step else {}
    start = {"time": now, "step": step, "strategy": strategy, "world": world}
    start |= {"changed": list(changed)} if changed else {}
    data = {"data": task.summary(), "trained": task.trained, "plan": plan_summary(task, plan)}
    about = {
        "started": before.get("started", now),
        "versions": versions(),
        "machine": machine(),
        "strategy": strategy,
        "world": world,
        "computes_in": asdict(compute),
        "parameters": parameters,
        "init": before.get("init") if task.origin is None else asdict(task.origin),
        **data,
        "starts": [*before.get("starts", []), *([] if again else [start])],
    }
    if stage.name:
        earlier = [each for each in before.get("stages", []) if each["number"] < stage.number]
        own = {"number": stage.number, "name": stage.name, "begin": stage.begin, "steps": stage.steps}
        about["stages"] = [*earlier, {**own, **data}]
    with written_whole(file) as beside:
        beside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
