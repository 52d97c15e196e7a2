"""FlowEdit by the model of a pipeline: clips changed along the difference of two prompts' velocities.

Axes: latents are [C,f,h,w], normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion.flow_edit import flow_edit
from ..errors import UserError
from ..limits import check_values
from ..packing import unpatchify
from ..words import counted
from .defaults import FLOW_GUIDANCE, N_AVG, N_MAX, N_MIN
from .latent_video import LatentVideoPipeline
from .sampling import Request, Sampling, same_number


@dataclass(frozen=True, kw_only=True)
class FlowEdit:
    """Of FlowEdit (Kulikov et al. 2024), in the paper's names.

    n_max: how many of the steps change the clip, the last ones; None: `N_MAX` of them. The more, the more may change.
    n_min: how many of these, the last ones, are ordinary steps with the target prompt alone.
    n_avg: draws of noise of which each step is the mean.
    source_guidance: scale of guidance of the source prompt; that of the target is the sampling's.
    """

    n_max: int | None = None
    n_min: int = N_MIN
    n_avg: int = N_AVG
    source_guidance: float = FLOW_GUIDANCE

    def __post_init__(self) -> None:
        names = ("n_max", "n_min", "n_avg", "source_guidance")
        check_values("", {name: value for name in names if (value := getattr(self, name)) is not None})

    def steps_of(self, steps: int) -> int:
        """n_max of so many steps. Raises UserError where there are fewer."""
        n_max = max(1, round(N_MAX * steps)) if self.n_max is None else self.n_max
        if n_max > steps:
            raise UserError(f"n_max {n_max} of {counted(steps, 'step')}: give at most so many (--n-max, --steps)")
        if self.n_min >= n_max:
            raise UserError(
                f"n_min {self.n_min} leaves none of the n_max {counted(n_max, 'step')} to edit by: "
                "lower --n-min, or raise --n-max"
            )
        return n_max


@torch.no_grad()
def flow_edited(
    pipeline: LatentVideoPipeline,
    latents: Sequence[Tensor],
    sources: Sequence[Request],
    targets: Sequence[Request],
    how: FlowEdit,
    sampling: Sampling,
) -> list[Tensor]:
    """The latents [C,f,h,w] of clips that the sources describe, as the targets do, which may have `given` and `known`.

    Both are of the clips' latent grids, and begin at level 1. Raises UserError for other solvers than `euler`, and for
    distilled models.
    """
    same_number(latents=latents, sources=sources, targets=targets)
    if pipeline.student is not None:
        raise UserError(
            "method flow needs velocities at all noise levels and guidance of two scales, which this distilled model "
            "does not have: edit with its teacher"
        )
    sampling = pipeline.of_changes(sampling.by_euler("method flow takes Euler's steps, not those of solver"))
    if sampling.on_step_end is not None:
        raise UserError("on_step_end is told states of sampling, and method flow has none: leave it out")
    steps = pipeline.config.steps if sampling.steps is None else sampling.steps
    n_max = how.steps_of(steps)
    guidance = replace(pipeline.guidance(sampling), scale=how.source_guidance)
    sources = [replace(r, given=z, known=None) for r, z in zip(sources, latents, strict=True)]
    targets = [r if r.given is not None else replace(r, given=z) for r, z in zip(targets, latents, strict=True)]
    with pipeline._autocast(sampling.precision):
        source, of_source = pipeline._prepare(sources, replace(sampling, guidance=guidance))
        target, of_target = pipeline._prepare(targets, sampling)
        made = flow_edit(
            pipeline.scheduler,
            of_source,
            of_target,
            source.clean,
            source.levels[-1 - n_max :],
            target.levels[-1 - n_max :],
            target.layout,
            lambda: target.noise(),
            n_min=how.n_min,
            n_avg=how.n_avg,
            clean=target.clean,
            known=target.known,
            progress=pipeline.progress_bar,
        )
    return unpatchify(target.finished(made), target.layout, pipeline.transformer.patch, [r.grid[0] for r in targets])
