"""Models one after another, each of which makes a clip larger, or gives it more frames: cascades.

A clip goes from one to the next in pieces, so that memory does not grow with its length.

Axes: F frames, H height, W width of clips uint8 [F,H,W,3].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import UserError
from ..precision import MixedPrecision
from ..rng import derived_seed
from ..words import counted
from .latent_video import LatentVideoPipeline
from .limit import check_cost
from .loading import load_pipeline
from .sampling import Sampling
from .tasks import check_ends, filled_in, made_between
from .upscale import Plan, SuperResolution, upscaled

T = TypeVar("T")
_FILLS_IN = {"ends", "random"}  # `GivenFrames` that teach a model to make frames between two


@dataclass(frozen=True)
class Stage:
    """One model of a cascade. model: of super-resolution; None: it fills in between frames that are given. by, times:
    how many times as large, and as many frames a second, its clips are. said: what messages call it."""

    pipeline: LatentVideoPipeline
    model: SuperResolution | None
    by: int
    times: int
    said: str

    @classmethod
    def of(cls, pipeline: LatentVideoPipeline, said: str, by: int | None = None, times: int | None = None) -> Stage:
        """by, times: None is what the model was trained for. Raises UserError where it was not trained for them."""
        if any(role.degrade for role in pipeline.roles.values()):
            model = _named(said, lambda: SuperResolution.of(pipeline, by))
            if times not in (None, model.times):
                raise UserError(
                    f"{said} gives a clip {model.times} times as many frames a second, not {times}: ask for that, or "
                    "take another model"
                )
            return cls(pipeline, model, model.by, model.times, said)
        if by not in (None, 1) or not _FILLS_IN & set(pipeline.config.given):
            what = "make clips larger" if by not in (None, 1) else "make clips larger, nor to fill in between frames"
            raise UserError(
                f"{said} was not trained to {what}: it needs a role of data.references with degrade, or given frames "
                "ends or random (docs/cascades.md)"
            )
        return cls(pipeline, None, 1, 2 if times is None else times, said)

    def check_words(self, prompts: Sequence[str], negative_prompt: str | None) -> None:
        """Raises UserError for what the model cannot be told, and for a distilled one that is not as it was trained."""
        self.pipeline.reader.check([*prompts, *([negative_prompt] if negative_prompt else ())])
        self.pipeline.check_sampling(Sampling())
        if self.pipeline.student is not None:
            self.pipeline.student.check_words([negative_prompt])

    def plan(self, frames: int, size: tuple[int, int], large: bool) -> Plan | None:
        """How a clip goes through it. Raises UserError where it cannot."""
        if self.model is not None:
            return _named(self.said, lambda: Plan.of(self.model, frames, *size, large))
        if frames < 2:
            raise UserError(f"{self.said}: a clip of one frame has nothing between its frames: give 2 or more")
        stride = self.pipeline.codec.temporal_stride
        grid = _named(
            self.said, lambda: self.pipeline.latent_grid(1 + made_between(self.times - 1, stride) + stride, *size)
        )
        _named(self.said, lambda: check_cost(self.pipeline, [grid], large))
        _named(self.said, lambda: check_ends(self.pipeline, None))
        return None


def _named(said: str, do: Callable[[], T]) -> T:
    """What `do` gives, its messages beginning with the stage that they are of."""
    try:
        return do()
    except UserError as error:
        raise UserError(f"{said}: {error}") from None


@dataclass(frozen=True)
class Cascade:
    """Stages, and how a clip of `frames` of `size` (H, W) at `fps` goes through them. made: what comes out of each."""

    stages: Sequence[Stage]
    plans: Sequence[Plan | None]
    made: Sequence[tuple[int, tuple[int, int], float]]  # frames, (H, W), fps

    @classmethod
    def of(
        cls,
        stages: Sequence[Stage],
        frames: int,
        size: tuple[int, int],
        fps: float,
        prompts: Sequence[str] = (),
        large: bool = False,
        negative_prompt: str | None = None,
    ) -> Cascade:
        """Raises UserError, before anything is made, where a stage cannot take what the one before it makes."""
        plans, made = [], []
        for stage in stages:
            _named(stage.said, lambda stage=stage: stage.check_words(prompts, negative_prompt))
            plans.append(stage.plan(frames, size, large))
            frames, size = (frames - 1) * stage.times + 1, (size[0] * stage.by, size[1] * stage.by)
            fps *= stage.times
            made.append((frames, size, fps))
        return cls(stages, plans, made)

    def run(
        self,
        chunks: Iterator[Tensor],
        prompt: str,
        *,
        seed: int = 0,
        negative_prompt: str | None = None,
        samplings: Sequence[Sampling] = (),
    ) -> Iterator[Tensor]:
        """The frames of the last stage, uint8 [F',H,W,3], as they are made. The k-th stage, counted from 1, has the
        noise of `derived_seed(seed, k, "cascade")`. samplings: one a stage; none: as each model has it."""
        samplings = samplings or [Sampling(progress=False)] * len(self.stages)
        each = zip(self.stages, self.plans, self.made, samplings, strict=True)
        for number, (stage, plan, (_, _, fps), sampling) in enumerate(each, 1):
            words = {"fps": fps, "seed": derived_seed(seed, number, "cascade"), "negative_prompt": negative_prompt}
            if stage.model is None:
                chunks = filled_in(stage.pipeline, chunks, stage.times, prompt, sampling=sampling, **words)
            else:
                chunks = upscaled(stage.model, chunks, plan, prompt, sampling=sampling, **words)
        return chunks


def open_stages(
    folders: Sequence[Path], device: torch.device | str | None, mixed_precision: MixedPrecision = "auto"
) -> list[Stage]:
    """The stages of --then. Raises UserError for a model that is none."""
    return [
        Stage.of(load_pipeline(folder, device, mixed_precision=mixed_precision), f"--then {folder}")
        for folder in folders
    ]


def times_of(wanted: float, fps: float, clip: Path) -> int:
    """How many times a clip's `fps` the wanted one is. Raises UserError for what is no whole number, from 2 on."""
    times = round(wanted / fps)
    if times < 2 or abs(wanted / fps - times) > 0.01 * times:
        raise UserError(
            f"--fps {wanted:g}: {clip} has {counted(fps, 'frame')} a second, of which the output has a "
            "whole number of times as "
            f"many: give {2 * fps:g} or {4 * fps:g}"
        )
    return times
