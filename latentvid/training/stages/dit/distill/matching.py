"""The student's own clips, and how far the teacher and a critic of them are apart there.

Axes: T tokens of a pack, P token features, R latent frames, N samples, K steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .....diffusion.distillation.matching import matching_loss
from .....diffusion.objective import loss_per_sample
from .....diffusion.solvers import Predict
from .....models.key_value_cache import KeyValueCache
from .....rng import generator
from ..pack import DitPack
from .packs import DistillPacks
from .teacher import predict_with
from .windows import windows


@dataclass(frozen=True)
class Matched:
    """Of each sample [N]. critic_loss: the critic's error beside the student's clips, with gradients for it.
    teacher_loss: the teacher's error beside them, and matching_loss, with gradients for the student; both None where
    the critic alone learns."""

    critic_loss: Tensor
    matching_loss: Tensor | None = None
    teacher_loss: Tensor | None = None


class MatchingPacks(DistillPacks):
    """Clips that the student makes from the noise of a pack's samples, and its teacher and its critic beside them.

    The levels of a pack are those that the clips are noised to, once for both. They are drawn as in training.
    """

    def exits(self, pack: DitPack) -> Tensor:
        """The number [N] of the step, from 0, whose x is each sample's clip: any of the student's."""
        steps, seed, device = self.config.distill.steps, self.config.run.seed, pack.timestep.device
        if not pack.numbers:  # of a blank pack
            return torch.full((pack.layout.segments,), steps - 1, device=device)
        draws = [torch.randint(steps, (), generator=generator(seed, number, "exit")) for number in pack.numbers]
        return torch.stack(draws).to(device)

    def made(self, model: Callable, pack: DitPack) -> Tensor:
        """The student's clips [T,P] (DMD2's backward simulation); gradients go through each one's last step alone.

        With `distill.rollout` a clip is made so many latent frames at a time, each after the clip's own ones before,
        which stand in a cache as the student left them: self-forcing (Huang et al. 2025, algorithm 1).
        """
        scale, exits, frames = self.scales(pack) if self.scaled else None, self.exits(pack), self.config.distill.rollout
        if frames is None:
            return self.simulated(predict_with(model, pack, scale, self.scheduler), pack, exits)
        cache, found, cut = KeyValueCache(), [], list(windows(pack, frames))
        for number, window in enumerate(cut, 1):
            cache = cache.select(window.kept)
            told = None if scale is None else scale.index_select(0, window.samples)
            student = predict_with(model, window.pack, told, self.scheduler, cache=cache)
            found.append(self.simulated(student, window.pack, exits.index_select(0, window.samples), window.start))
            if number < len(cut):
                self._remember(student, window.pack, found[-1].detach(), cache)
        return torch.cat(found).index_select(0, torch.cat([window.tokens for window in cut]).argsort())

    @torch.no_grad()
    def _remember(self, student: Predict, part: DitPack, clip: Tensor, cache: KeyValueCache) -> None:
        """Adds finished frames [T',P] to the cache that the student reads, at level 0."""
        with cache.recording():
            student(clip, torch.zeros_like(part.timestep))

    def simulated(self, student: Predict, pack: DitPack, exits: Tensor, before: int = 0) -> Tensor:
        """[T,P]: the x of step `exits` [N] of each sample, which its own steps from noise lead to. before: latent
        frames of each clip that stand before the pack's."""
        layout, steps, scheduler = pack.layout, self.config.distill.steps, self.scheduler
        levels = torch.where(pack.timestep > 0, self.fine_levels(pack, steps, before).T, 0.0)  # [K+1,R]
        last = exits.index_select(0, layout.frame_segment)  # [R]

        def level(i: int) -> Tensor:
            return levels.gather(0, last.clamp_max(i)[None])[0]

        def tokens(of_frames: Tensor) -> Tensor:  # [R] -> [T,1]
            return of_frames.index_select(0, layout.frame)[:, None]

        own = tokens(pack.timestep) > 0
        z = torch.where(own, scheduler.begin(pack.noise), pack.clean)
        with torch.no_grad():
            for i in range(steps - 1):  # as many passes for each pack: processes may gather weights in each
                t, s = level(i), level(i + 1)
                z = scheduler.step(student(z, t), tokens(t), tokens(s), z)
        t = level(steps - 1)
        x, _ = scheduler.recover(z, student(z, t), tokens(t))
        return torch.where(own, x, pack.clean)

    def renoise(self, pack: DitPack) -> Tensor:
        """Fresh noise [T,P] for the student's clips, drawn on the device."""
        found = torch.zeros_like(pack.noise)
        for part, number in zip(found.split(pack.layout.lengths), pack.numbers, strict=False):
            seed = generator(self.config.run.seed, number, "renoise").initial_seed()
            part.normal_(generator=torch.Generator(found.device).manual_seed(seed))
        return found

    def matched(self, model: Callable, pack: DitPack, learns: bool) -> Matched:
        """learns: the student does, beside the critic."""
        pack = pack if pack.ready else self.prepare(pack)
        scheduler, layout, levels = self.scheduler, pack.layout, pack.timestep
        t = levels.index_select(0, layout.frame)[:, None]  # [T,1]
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            x = self.made(model, pack)
        clip, noise = x.detach(), self.renoise(pack)
        z, target = scheduler.mix(clip, noise, t), scheduler.target(clip, noise, t)
        weight = self.config.weighting(scheduler.config.target, scheduler.path, levels)
        scale = self.scales(pack) if self.scaled else None
        told = predict_with(partial(model, critic=True), pack, scale, scheduler)(z, levels)
        critic_loss = loss_per_sample(told, target, levels, layout, weight)
        if not learns:
            return Matched(critic_loss)
        guided = self.predictions(model, pack)[1](z, levels)
        of_critic, of_teacher = (scheduler.recover(z, each, t)[0] for each in (told.detach(), guided))
        loss = matching_loss(x, of_teacher, of_critic, levels, layout)
        return Matched(critic_loss, loss, loss_per_sample(guided, target, levels, layout, weight))
