"""Distribution matching: a student and its critic are trained together (`diffusion/distillation/matching.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .....errors import UserError
from .....models.flops import TRAINING
from .....models.transformer import VideoDiT
from .....models.with_critic import CRITIC, VideoDiTWithCritic, without_critic
from ....checkpoint.init import Source
from ....optim import Part, rests
from ....origin import Origin
from ..pack import DitPack
from .matching import MatchingPacks
from .task import DistillTask
from .validation import HeldOutStudent


class DmdTask(MatchingPacks, DistillTask):
    """The critic learns at every step, the student at the last of each `distill.critic_updates` (the two time-scales of
    DMD2, section 4.2). Both begin as the teacher."""

    dit = VideoDiTWithCritic

    def new_model(self) -> VideoDiT:
        model, frames = super().new_model(), self.config.distill.rollout
        if frames is not None and model.config.attention != "causal":
            raise UserError(
                f"distill.rollout is {frames}, and the teacher's attention is {model.config.attention}: frames made in "
                "turn need a model of causal attention: leave rollout out, or give another teacher"
            )
        return model

    @property
    def ragged(self) -> bool:
        return self.config.distill.rollout is not None  # a pass for each window of a pack's longest clip

    @property
    def apart(self) -> tuple[Part, ...]:
        found, optim = self.config.distill, self.config.optim
        return (Part(CRITIC, optim.lr if found.critic_lr is None else found.critic_lr, updates=found.critic_updates),)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [*self.model.blocks, *self.model.critic.blocks]

    def _take(self, model: VideoDiTWithCritic, source: Source) -> Origin:
        found = super()._take(model, source)
        model.begin_critic()
        self.origin = replace(found, taken=2 * found.taken)
        return self.origin

    @property
    def _passes(self) -> float:
        found = self.config.distill
        alone = found.steps - 1 + TRAINING  # the student's steps, and the critic
        alone += found.rollout is not None  # what the cache holds is one pass more
        turn, between = TRAINING + self.teacher.passes, 1  # the student's last step, with gradients or without
        return (alone + (turn + between * (found.critic_updates - 1)) / found.critic_updates) / TRAINING

    @property
    def _compared(self) -> int:
        return self.facts.steps

    def loss(self, model: Callable, pack: DitPack, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        learns = self.config.run.dry_run or not rests(self.apart, step)
        found = self.matched(model, pack, learns)
        passes = torch.full_like(found.critic_loss.detach(), float(self.passes))
        parts = {"critic_loss": found.critic_loss, "passes": passes}
        if not learns:
            return found.critic_loss, parts
        parts |= {"matching_loss": found.matching_loss, "teacher_loss": found.teacher_loss}
        return found.critic_loss + found.matching_loss, parts

    def export(self, model: VideoDiT, folder: Path) -> None:
        super().export(without_critic(model), folder)

    def _held_out(self) -> type[HeldOutStudent]:
        return HeldOutMatched


class HeldOutMatched(MatchingPacks, HeldOutStudent):
    """Of the clips that all of the student's steps make, noised to the level of each bin."""

    figures = ("loss", "critic_loss", "teacher_loss")

    def exits(self, pack: DitPack) -> Tensor:
        return torch.full((pack.layout.segments,), self.config.distill.steps - 1, device=pack.timestep.device)

    def measured(self, model: nn.Module, pack: DitPack) -> Tensor:
        found = self.matched(model, pack, True)
        return torch.stack([found.matching_loss, found.critic_loss, found.teacher_loss])

    def student_end(self, model: nn.Module, pack: DitPack) -> Tensor:
        return self.made(model, pack)
