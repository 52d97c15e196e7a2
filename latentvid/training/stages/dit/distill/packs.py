"""What a student is taught on a pack, at the noise levels that it is for.

Axes: T tokens of a pack, P token features, R latent frames, N samples, S text tokens, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .....config.distillation import DistillConfig
from .....data.plan.plan import Draw
from .....diffusion.distillation.consistency import consistency_target
from .....diffusion.distillation.guided import draw_scales, guided_target
from .....diffusion.distillation.point import Point, up_to
from .....diffusion.distillation.progressive import progressive_target
from .....diffusion.objective import loss_per_sample
from .....diffusion.solvers import Predict
from .....packing import Grid
from ..data import DitPacks
from ..pack import DitPack
from .teacher import Teacher, guided_predict, predict_with


@dataclass(frozen=True)
class Taught:
    """Of each sample [N]. loss: of the student beside what it is taught, with gradients. student_loss, teacher_loss:
    errors of both beside the data, in the model's own target."""

    loss: Tensor
    student_loss: Tensor
    teacher_loss: Tensor


FIGURES = ("loss", "student_loss", "teacher_loss")


class DistillPacks(DitPacks):
    """Samples at the noise levels that the student is for, and what it is taught there."""

    config: DistillConfig
    teacher: Teacher
    scaled: bool  # the student's network takes a scale of guidance

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "teacher"}

    def _noise_levels(self, draw: Draw, grid: Grid) -> Tensor:
        """As ever, moved up to the next level of the steps that the student is taught."""
        levels, steps = super()._noise_levels(draw, grid), self.config.distill.trained
        return levels if steps is None else up_to(self.scheduler.levels(steps, math.prod(grid)), levels)

    def _null(self) -> Tensor:
        """Text states [S,Dt] of the empty prompt."""
        return self.null_text if self.cache is not None else self.text.encode([""]).states.float()

    def scales(self, pack: DitPack) -> Tensor:
        """The scale of guidance [N] that each sample is taught."""
        asked, device = self.config.distill.guidance, pack.timestep.device
        if not self.config.distill.told or not pack.numbers:  # a blank pack has no numbers
            return torch.full((pack.layout.segments,), float(asked[-1] if self.scaled else asked), device=device)
        return draw_scales(*asked, self.config.run.seed, pack.numbers).to(device)

    def predictions(self, model: Callable, pack: DitPack) -> tuple[Predict, Predict]:
        """Of the student, and of the teacher with guidance, for a pack."""
        scale = self.scales(pack)
        null = pack.text[: len(pack.text) // pack.layout.segments] if self.config.run.dry_run else self._null()
        student = predict_with(model, pack, scale if self.scaled else None, self.scheduler)
        return student, guided_predict(self.teacher, model, pack, scale, null, self.scheduler, self.scaled)

    def fine_levels(self, pack: DitPack, steps: int, before: int = 0) -> Tensor:
        """[R,K+1] of so many steps, of each latent frame by its clip's tokens, with those of `before` latent frames."""
        each = torch.stack([self.scheduler.levels(steps, (before + f) * h * w) for f, h, w in pack.layout.grid])
        return each.to(pack.timestep.device).index_select(0, pack.layout.frame_segment)

    def taught(self, model: Callable, pack: DitPack) -> Taught:
        pack = pack if pack.ready else self.prepare(pack)
        found, scheduler = self.config.distill, self.scheduler
        t = pack.timestep.index_select(0, pack.layout.frame)[:, None]  # [T,1]
        levels = None if found.fine is None else self.fine_levels(pack, found.fine)
        point = Point(scheduler, pack.layout, scheduler.mix(pack.clean, pack.noise, t), pack.timestep, levels)
        student, teacher = self.predictions(model, pack)
        with torch.no_grad():  # before the pass with gradients: what that gathers of a sharded model is still right
            if found.method == "guidance":
                target, told = guided_target(point, teacher)
            elif found.method == "progressive":
                target, told = progressive_target(point, teacher)
            else:
                target, told = consistency_target(point, teacher, student, found.steps)
        prediction, data = student(point.z, point.t), scheduler.target(pack.clean, pack.noise, t)
        weight = self.config.weighting(scheduler.config.target, scheduler.path, pack.timestep)

        def errors(a: Tensor, b: Tensor) -> Tensor:
            return loss_per_sample(a, b, pack.timestep, pack.layout, weight)

        return Taught(errors(prediction, target), errors(prediction.detach(), data), errors(told, data))
