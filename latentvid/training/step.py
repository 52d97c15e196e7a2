"""One training step: gradients of its packs, and the optimiser's update."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..config.schema import TrainingConfig
from ..data.plan.plan import Draw, Step
from ..models.flops import TRAINING
from ..transfer import to_device
from .ema import EMA
from .monitor.efficiency import EfficiencyMeter
from .optim import rests
from .parallel.strategy import Strategy, whole
from .task import Pack, Task

logger = logging.getLogger(__name__)

Packs = Sequence[tuple[Sequence[Draw], Pack]]  # this process's, with the draws of each


@dataclass
class Sums:
    """What a step's passes left on the device: of all processes, not yet read."""

    names: tuple[str, ...]  # of the loss and its parts
    values: Tensor  # theirs, then those of `StepResult`'s other fields, FLOPs in 1e9

    def result(self, values: Sequence[float]) -> StepResult:
        *values, stopped, replaced, flops = values
        named = dict(zip(self.names, values, strict=True))
        return StepResult(named.pop("loss"), named, stopped > 0, round(replaced), flops * 1e9)


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

    def gradients(self, step: Step, packs: Packs, number: int, stop: bool) -> Sums:
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
                    share = to_device(tokens, losses.device, torch.float32) / weight
                else:
                    share = torch.full_like(losses, 1.0 / weight)
                self.strategy.backward((losses * share).sum() * self.world)
            for name, part in {"loss": losses, **parts}.items():
                sums[name] = sums.get(name, 0.0) + (part.detach().float() * share).sum()
        replaced = sum(pack.replaced for _, pack in packs)
        counts = {"stop": stop, "replaced": replaced, "flops": flops * TRAINING / 1e9}
        shared = torch.stack([*sums.values(), *(torch.full_like(sums["loss"], float(n)) for n in counts.values())])
        return Sums(tuple(sums), self.accelerator.reduce(shared, reduction="sum"))

    def _weight(self, step: Step, packs: Packs) -> int | Tensor:
        """Samples of the step, or its tokens that have a loss, over all processes."""
        if self.config.train.loss_by == "sample":
            return step.samples
        if not self.task.partial:
            return step.tokens
        counted = sum(pack.counted_in_all for _, pack in packs)
        if self.world > 1:
            counted = to_device(counted, self.accelerator.device)
            torch.distributed.all_reduce(counted)
        return counted // self.config.train.sequence_parallel  # whose processes all have the same packs

    def update(self, sums: Sums, number: int, own: int) -> tuple[StepResult, dict[str, float]]:
        """The optimiser's step, or none where the gradient norm is not finite or too large; what the step came to, and
        the norms, by name.

        number: of the step in the run, own: in its stage, both from 0. This is where the host waits for the device: it
        reads the norms, which say whether there is a step, and all else with them.
        """
        result: StepResult | None = None

        def read(norms: Mapping[str, Tensor]) -> dict[str, float]:
            nonlocal result
            values = torch.cat([sums.values, *(whole(norm)[None].to(sums.values) for norm in norms.values())]).tolist()
            first = len(values) - len(norms)
            result = sums.result(values[:first])
            return dict(zip(norms, values[first:], strict=True))

        rest = rests(self.task.apart, own)
        with self.meter.span("optimizer"):
            norms, stepped = self.strategy.update(rest, read)
            if stepped and not rest:
                self.ema.update(self.strategy.pieces())
        if result is None:  # the strategy reads its norm itself
            read({})
        if stepped:
            self.bad_steps = 0
            return result, norms
        self.bad_steps += 1
        self.skipped += 1
        norm = next((n for n in norms.values() if not math.isfinite(n)), norms.get("grad_norm", 0.0))
        limit = self.config.optim.skip_norm
        self.why = f"above optim.skip_norm={limit}" if math.isfinite(norm) else "not finite"
        if self.accelerator.is_main_process:
            logger.warning("step %d skipped: its gradient norm %s is %s", number + 1, norm, self.why)
        return result, norms


def all_draws(packs: Packs, world: int, sequence: int) -> list[Draw]:
    """What the loaders of all processes made for a step; `sequence` consecutive ones have the same packs."""
    mine = [draw for draws, _ in packs for draw in draws]
    if world == 1:
        return sorted(mine)
    every: list[Any] = [None] * world
    torch.distributed.all_gather_object(every, mine)
    return sorted(Draw(*draw) for draws in every[::sequence] for draw in draws)
