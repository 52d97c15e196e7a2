"""What a distilled model can be asked for: its steps, and its scale of guidance, in one pass a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..diffusion.guidance import Guidance
from ..diffusion.scheduler import LatentVideoScheduler
from ..errors import UserError
from ..limits import check, shown
from ..models.conditions import Conditions
from ..models.key_value_cache import KeyValueCache
from ..rng import derived_seed
from ..words import counted

if TYPE_CHECKING:
    from .sampling import Request, Sampling

SOLVER = "euler"  # of whose steps a student's are made


@dataclass(frozen=True, kw_only=True)
class Student:
    """Of a pipeline's `student` in model_index.json.

    steps: of the model; None: it takes any number, as its teacher. levels: [steps + 1] noise levels, from 1 to 0, of
    these steps, the only ones that it was trained at: `scheduler.levels(steps)`, of which the scheduler moves some by a
    clip's tokens where it was trained so.
    guidance: scales from low to high that the model is told, or the one that is in its weights. In no case is there a
    second pass.
    rollout: latent frames that it makes at a time, each after those before, as it was taught to (self-forcing); None:
    all of a clip.
    """

    steps: int | None
    guidance: float | tuple[float, float]
    levels: tuple[float, ...] | None = None
    rollout: int | None = None

    @classmethod
    def of(cls, found: Any) -> Student:
        """Raises UserError, which names what is wrong."""
        if not isinstance(found, Mapping) or set(found) - {"rollout"} != {"steps", "guidance", "levels"}:
            raise UserError(f"student={shown(found)}: must have steps, guidance and levels")
        if (rollout := found.get("rollout")) is not None:
            check("student.rollout", rollout, whole=True)
        steps, scales, levels = found["steps"], found["guidance"], found["levels"]
        if steps is not None:
            check("student.steps", steps, whole=True)
        if (steps is None) != (levels is None) or (steps is not None and not _fall(levels, steps)):
            raise UserError(f"student.levels={shown(levels)}: must be levels from 1 to 0, one more than steps={steps}")
        for scale in scales if isinstance(scales, list | tuple) else [scales]:
            check("student.guidance", scale)
        if isinstance(scales, list | tuple):
            if len(scales) != 2 or scales[0] >= scales[1]:
                raise UserError(f"student.guidance={shown(list(scales))}: must be a number, or the lowest and highest")
            scales = tuple(map(float, scales))
        return cls(steps=steps, guidance=scales, levels=None if levels is None else tuple(levels), rollout=rollout)

    def as_json(self) -> dict[str, Any]:
        guidance, levels = list(self.guidance) if self.told else self.guidance, self.levels
        found = {"steps": self.steps, "guidance": guidance, "levels": None if levels is None else list(levels)}
        return found if self.rollout is None else {**found, "rollout": self.rollout}

    @property
    def told(self) -> bool:
        """Whether the scale of guidance is an input of the model."""
        return isinstance(self.guidance, tuple)

    def check_steps(self, steps: int, solver: str) -> None:
        """Raises UserError for what it was not trained to do."""
        if self.steps is None:
            return
        if self.steps % steps:
            fewer = [n for n in range(1, self.steps + 1) if self.steps % n == 0]
            raise UserError(
                f"steps={steps}: this model was distilled to {counted(self.steps, 'step')}, and takes "
                f"{several(fewer)}: leave "
                "--steps out, or sample with its teacher"
            )
        if solver != SOLVER:
            raise UserError(
                f"solver {solver!r}: this model was distilled to {counted(self.steps, 'step')} of "
                f"{SOLVER}: leave --solver out"
            )

    def check_levels(self, scheduler: LatentVideoScheduler) -> None:
        """Raises UserError where the scheduler has not the levels that it was trained at."""
        if self.steps is not None:
            found = scheduler.levels(self.steps).tolist()
            if max(abs(a - b) for a, b in zip(found, self.levels, strict=True)) > 1e-4:
                raise UserError(
                    f"the scheduler's levels of {counted(self.steps, 'step')} are {_rounded(found)}, "
                    "and this model was distilled "
                    f"to {_rounded(self.levels)}: set scheduler/scheduler_config.json as training left it"
                )

    def check_words(self, negative_prompts: Sequence[str | None]) -> None:
        """Raises UserError where there are any."""
        if any(negative_prompts):
            raise UserError(
                "negative prompts need a second pass at each step, which this distilled model does not make: leave "
                "them out, or sample with its teacher"
            )

    def check_requests(self, requests: Sequence[Request]) -> None:
        """Raises UserError for those that it was not trained for."""
        self.check_words([request.negative_prompt for request in requests])
        if self.steps is not None and any(request.level != 1.0 for request in requests):
            raise UserError(
                f"this model was distilled to {counted(self.steps, 'step')} from noise alone, and "
                "cannot begin in between, as "
                "edits do: use its teacher"
            )

    def check_guidance(self, asked: Guidance) -> None:
        """Raises UserError for guidance of another kind, or of a scale that it does not know."""
        if replace(asked, scale=1.0) != Guidance():
            raise UserError(
                "guidance_rescale, guidance_interval and zero_init are of guidance by a second pass, which this "
                "distilled model does not make: leave them out, or sample with its teacher"
            )
        low, high = self.guidance if self.told else (self.guidance, self.guidance)
        if not low - 1e-6 <= asked.scale <= high + 1e-6:
            known = f"scales from {low:g} to {high:g}" if self.told else f"scale {low:g} in its weights"
            raise UserError(f"guidance={asked.scale:g}: this model was distilled with {known}: ask for that")


class StudentMixin:
    """What a pipeline does otherwise where its model is distilled."""

    @property
    def student(self) -> Student | None:
        """What it can be asked for where it is distilled."""
        found = self.config.get("student")
        return None if found is None else Student.of(found)

    def check_sampling(self, sampling: Sampling) -> None:
        """Raises UserError for what a distilled model cannot do."""
        if self.student is not None:
            steps = self.config.steps if sampling.steps is None else sampling.steps
            self.student.check_steps(check("steps", steps), sampling.solver or self.solver)
            self.student.check_levels(self.scheduler)
            self.student.check_guidance(self.guidance(sampling))

    def _by_passes(self, guidance: Guidance, given: Conditions, samples: int) -> tuple[Guidance, Conditions]:
        """What guidance is left to a second pass, which a distilled model does not make, and what the model is told.
        Raises UserError."""
        if self.student is None:
            return guidance, given
        self.student.check_guidance(guidance)
        if self.student.told:
            given = replace(given, guidance=torch.full((samples,), guidance.scale, device=self._execution_device))
        return Guidance(), given

    def _in_turn(self, requests: Sequence[Request], sampling: Sampling, frames: int) -> list[Tensor]:
        """Latents [C,f,h,w] of the requests, so many latent frames at a time, each after the clip's own ones before.

        Window k has the noise of `turn_seed(seed, k)`. What is known of a clip stays.
        """
        cache, going, made = KeyValueCache(), list(range(len(requests))), [[] for _ in requests]
        parts: list[Request] = []
        for turn, start in enumerate(range(0, max(request.grid[0] for request in requests), frames)):
            if turn:
                self.remember([made[i][-1] for i in going], parts, sampling, cache)
                longer = [i for i in going if requests[i].grid[0] > start]
                cache, going = cache.select([going.index(i) for i in longer]), longer
            parts = [_part(requests[i], turn, start, frames) for i in going]
            for i, latent in zip(going, self.sample(parts, sampling, cache), strict=True):
                given, known = (_cut(getattr(requests[i], name), start, frames) for name in ("given", "known"))
                whole = known is not None and bool(known.all())
                made[i].append(given.to(latent) if whole else latent)
        return [torch.cat(each, dim=1) for each in made]


def turn_seed(seed: int, turn: int) -> int:
    """The seed of the noise of a window of a clip that is made in turns: the clip's own for the first."""
    return derived_seed(seed, turn, "rollout") if turn else seed


def _part(request: Request, turn: int, start: int, frames: int) -> Request:
    """Of some latent frames. What is known whole is not sampled: it is put instead of what is."""
    f, h, w = request.grid
    given, known = (_cut(getattr(request, name), start, frames) for name in ("given", "known"))
    if known is None or bool(known.all()) or not bool(known.any()):
        given = known = None
    grid = (min(frames, f - start), h, w)
    return replace(request, grid=grid, seed=turn_seed(request.seed, turn), given=given, known=known)


def _cut(x: Tensor | None, start: int, frames: int) -> Tensor | None:
    """Some latent frames of a latent [C,f,h,w] or a mask [f,h,w]."""
    return None if x is None else x[..., start : start + frames, :, :]


def _fall(levels: Any, steps: int) -> bool:
    """Whether these are levels of so many steps."""
    if not isinstance(levels, list | tuple) or len(levels) != steps + 1:
        return False
    for level in levels:
        check("student.level", level)
    return levels[-1] == 0 and all(a > b for a, b in zip(levels, levels[1:], strict=False))


def _rounded(levels: Sequence[float]) -> str:
    return ", ".join(f"{level:.4g}" for level in levels)


def several(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
