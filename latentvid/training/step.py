"""One training step: gradients of its packs, and the optimiser's update."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..config.schema import TrainingConfig
from ..data.plan.plan import Draw, Step
from ..models.flops import TRAINING
from .ema import EMA
from .monitor.efficiency import EfficiencyMeter
from .optim import rests
from .parallel.strategy import Strategy
from .task import Pack, Task

logger = logging.getLogger(__name__)

Packs = Sequence[tuple[Sequence[Draw], Pack]]  # this process's, with the draws of each


@dataclass
class StepResult:
    """Over all processes: means of the loss and its parts, whether some process was asked to stop, clips replaced by
    others, floating point operations."""

    loss: float
    parts: dict[str, float]
    stop: bool
    replaced: int
    flops: float


class Stepper:
    """Makes steps, and counts those that were skipped because their gradient was of no use."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainingConfig,
        task: Task,
        strategy: Strategy,
        ema: EMA,
        meter: EfficiencyMeter,
    ) -> None:
        self.accelerator, self.config, self.task = accelerator, config, task
        self.strategy, self.ema, self.meter = strategy, ema, meter
        self.world = accelerator.num_processes
        self.bad_steps = 0  # skipped in a row
        self.skipped = 0  # in all
        self.why = ""  # the last one was skipped

    def gradients(self, step: Step, packs: Packs, number: int, stop: bool) -> StepResult:
        """Gradients of the step's mean loss: each rank sums its share over `weight`, strategies average over ranks.

        number: of the step, from 0. stop: this process was asked to stop.
        """
        sums: dict[str, Tensor] = {}
        weight = self._weight(step, packs)
        flops = sum(self.task.flops(pack) for _, pack in packs)
        for i, (_, pack) in enumerate(packs):
            pack = pack.to(self.accelerator.device)
            with self.meter.span("encode"):
                pack = self.task.prepare(pack)
            with self.meter.span("compute"), self.strategy.accumulating(last=i + 1 == len(packs)):
                losses, parts = self.task.loss(self.strategy, pack, number)
                if self.config.train.loss_by == "token":
                    tokens = pack.counted if self.task.partial else pack.tokens
                    share = torch.tensor(tokens, dtype=torch.float32, device=losses.device) / weight
                else:
                    share = torch.full_like(losses, 1.0 / weight)
                self.strategy.backward((losses * share).sum() * self.world)
            for name, part in {"loss": losses, **parts}.items():
                sums[name] = sums.get(name, 0.0) + (part.detach().float() * share).sum()
        replaced = sum(pack.replaced for _, pack in packs)
        counts = {"stop": stop, "replaced": replaced, "flops": flops * TRAINING / 1e9}
        shared = torch.stack([*sums.values(), *(torch.full_like(sums["loss"], float(n)) for n in counts.values())])
        *values, stopped, replaced, flops = self.accelerator.reduce(shared, reduction="sum").tolist()
        named = dict(zip(sums, values, strict=True))
        return StepResult(named.pop("loss"), named, stopped > 0, round(replaced), flops * 1e9)

    def _weight(self, step: Step, packs: Packs) -> int:
        """Samples of the step, or its tokens that have a loss, over all processes."""
        if self.config.train.loss_by == "sample":
            return step.samples
        if not self.task.partial:
            return step.tokens
        counted = torch.tensor(sum(pack.counted_in_all for _, pack in packs), device=self.accelerator.device)
        if self.world > 1:
            torch.distributed.all_reduce(counted)
        return int(counted) // self.config.train.sequence_parallel  # whose processes all have the same packs

    def update(self, number: int, own: int) -> dict[str, float]:
        """The optimiser's step, or none where the gradient norm is not finite or too large; the norms, by name.

        number: of the step in the run, own: in its stage, both from 0.
        """
        rest = rests(self.task.apart, own)
        with self.meter.span("optimizer"):
            norms, stepped = self.strategy.update(rest)
            if stepped:
                if not rest:
                    self.ema.update(self.strategy.pieces())
                self.bad_steps = 0
                return norms
        self.bad_steps += 1
        self.skipped += 1
        norm = next((n for n in norms.values() if not math.isfinite(n)), norms.get("grad_norm", 0.0))
        limit = self.config.optim.skip_norm
        self.why = f"above optim.skip_norm={limit}" if math.isfinite(norm) else "not finite"
        if self.accelerator.is_main_process:
            logger.warning("step %d skipped: its gradient norm %s is %s", number + 1, norm, self.why)
        return norms


def all_draws(packs: Packs, world: int, sequence: int) -> list[Draw]:
    """What the loaders of all processes made for a step; `sequence` consecutive ones have the same packs."""
    mine = [draw for draws, _ in packs for draw in draws]
    if world == 1:
        return sorted(mine)
    every: list[Any] = [None] * world
    torch.distributed.all_gather_object(every, mine)
    return sorted(Draw(*draw) for draws in every[::sequence] for draw in draws)
