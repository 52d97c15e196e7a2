"""Distillation: a student learns from a frozen teacher, by the methods of `diffusion.distillation`.

Axes: N samples of a pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .....config.distillation import DistillConfig
from .....errors import UserError
from .....models.flops import TRAINING, GridFlops
from .....models.kinds import DIT
from .....models.transformer import VideoDiT
from .....models.with_critic import CRITIC, without_critic
from .....packing import Grid, Reference
from .....words import counted
from ....checkpoint.init import Source, Wanted, begin_with, open_source
from ....origin import Origin
from ....task import HeldOut
from ..pack import DitPack
from ..parts import differing_from
from ..sampled_scores import SampledScores
from ..task import DitTask
from .packs import DistillPacks
from .teacher import Teacher, TeacherFacts, check_teacher, settled_by_teacher
from .validation import HeldOutStudent

# parameters by which a student is told the scale, which at first change nothing; of a critic, which begins as it does
NEW = ("guidance_in.", f"{CRITIC}.")


class DistillTask(DistillPacks, DitTask):
    """What is trained is the student, which begins as the teacher.

    The teacher of a run's first stage is the pipeline that is named, which is read again where the run goes on; that
    of a later one is the average of the student at the end of the stage before, in the checkpoint that stays there.
    """

    config: DistillConfig

    def __init__(self, config: DistillConfig, device: torch.device, data: bool = True) -> None:
        self.facts, self.scaled = TeacherFacts.read(config.teacher), config.distill.told
        super().__init__(settled_by_teacher(config), device, data)
        if self.model.channels:
            raise UserError(
                f"teacher {config.teacher} has further input channels (model.condition_channels), and this is of "
                "models without them: give another teacher"
            )
        if data:
            self._check_levels()
            self.teacher = Teacher(self._copy(), self._guides, self.config, device, self.facts.interval)

    @property
    def _guides(self) -> bool:
        """Whether the named teacher needs a second pass for guidance."""
        return self.facts.student is None and self.config.distill.guidance != 1.0

    def _source(self) -> Source | None:
        check_teacher(self.config, self.parts, self.facts)
        return super()._source()

    def _take(self, model: VideoDiT, source: Source) -> Origin:
        differing = [d for d in differing_from(source, model, self.parts) if not d.startswith("model.guidance_cond")]
        self.origin = begin_with(model, source, differing, False, new=NEW)
        return self.origin

    def _copy(self) -> nn.Module:
        """Another network as the teacher is."""
        origin = self.origin  # which is of the model that is trained, and of a run's start
        copy = without_critic(self.new_model()).requires_grad_(False).eval()
        self.origin = origin
        return copy if self.config.run.dry_run else copy.to(self.device)

    def follow(self, before: Path | None) -> None:
        found, named = self.config.distill, self.facts.student
        if before is None:
            if named is not None and named.steps not in (None, found.fine):
                mend = "halve its steps with method progressive" if found.method != "dmd" else "give its teacher"
                raise UserError(
                    f"distill: teacher {self.config.teacher} makes {counted(named.steps, 'step')}, and "
                    "this needs one of "
                    f"{found.fine or 'any number'}: {mend}"
                )
            return
        self.teacher.two_passes = False  # the stage before learnt guidance
        if self.config.run.dry_run:
            return
        source = open_source(str(before), "ema", Wanted(DIT, self.config.stage, "transformer", {}))
        begin_with(self.teacher.network, source, [], False)

    def _check_levels(self) -> None:
        """Raises UserError where the student's levels are not some of its teacher's."""
        found = self.config.distill
        if found.fine is None:
            return
        for tokens in {min(self.tokens), max(self.tokens)}:
            fine, own = (self.scheduler.levels(n, int(tokens)) for n in (found.fine, found.steps))
            if not torch.allclose(fine[:: found.fine // found.steps], own, atol=1e-5):
                spacing = self.scheduler.config.spacing
                raise UserError(
                    f"scheduler: the levels of {counted(found.steps, 'step')} are not among those of "
                    f"{found.fine} (spacing "
                    f"{spacing}): set scheduler.spacing=even, without terminal"
                )

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        return *super().frozen, self.teacher.network

    @property
    def _passes(self) -> float:
        """Of the student and its teacher in a step, over one that is trained."""
        each = {"guidance": 1, "progressive": 2, "consistency": 1}[self.config.distill.method] * self.teacher.passes
        return 1 + (each + (self.config.distill.method == "consistency")) / TRAINING

    def grid_flops(self, grid: Grid, references: Sequence[Reference] = ()) -> GridFlops:
        one = super().grid_flops(grid, references)
        return GridFlops(round(self._passes * one.model), one.encode)

    def flops(self, pack: DitPack) -> float:
        return self._passes * super().flops(pack)

    def loss(self, model: nn.Module, pack: DitPack, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        found = self.taught(model, pack)
        passes = torch.full_like(found.student_loss, float(self.passes))
        return found.loss, {"student_loss": found.student_loss, "teacher_loss": found.teacher_loss, "passes": passes}

    @property
    def passes(self) -> int:
        """Of the student for a clip, as it is exported."""
        return self.config.sampled(self.config.inference.steps, 1.0)["steps"]

    def held_out(self) -> HeldOut | None:
        settings = self.config.validation
        if not settings.every:
            return None
        scores = SampledScores(self.config, self.parts, self.patch) if settings.scores else None
        held_out = self._held_out()(self.config, self.parts, self.patch, scores, self.conditions)
        held_out.teacher, held_out.scaled = self.teacher, self.scaled
        held_out.steps = self.passes, self._compared
        return held_out

    def _held_out(self) -> type[HeldOutStudent]:
        return HeldOutStudent

    @property
    def _compared(self) -> int:
        """Steps of the teacher to the end that the student's is compared with."""
        return self.config.distill.fine or self.passes
