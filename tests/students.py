"""Students of the tiny pipeline: their configuration, a pack of theirs, and weights that differ from the teacher's."""

from pathlib import Path

import torch

from latentvid.config.distillation import DistillConfig
from latentvid.config.parsing import load_config
from latentvid.data.plan.plan import Draw

BASE = {
    "data.workers": 0,
    "data.tokens_per_pack": 256,
    "data.packs_per_step": 2,
    "optim.lr": 3e-3,
    "optim.warmup": 0,
    "train.mixed_precision": "no",
    "train.ema": 0.9,
    "train.steps": 2,
    "checkpoint.every": 1,
    "checkpoint.keep_last": 20,
    "log.trackers": "[]",
    "samples.steps": 3,
    "inference.steps": 3,
}


def student_config(run: Path, teacher: Path, latents: Path, *options: str) -> DistillConfig:
    base = {"teacher": teacher, "data.latents": latents, **BASE}
    return load_config(DistillConfig, None, [f"run.dir={run}", *(f"{k}={v}" for k, v in base.items()), *options])


def pack_of(task, count: int = 6):
    return task.prepare(task.make_pack([Draw(number=100 + i, index=i) for i in range(count)]))


@torch.no_grad()
def moved(task, by: float = 0.05):
    draws = torch.Generator().manual_seed(1)
    for parameter in task.model.parameters():
        parameter += by * torch.randn(parameter.shape, generator=draws)
    return task
