"""What a call of the pipeline has in common with diffusers' video pipelines: generators, outputs, callbacks.

Axes: B clips, F frames, H height, W width; latents are [C,f,h,w], T tokens of a pack, P token features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ..diffusion.solvers import OnStep
from ..errors import UserError
from ..limits import LONG, check
from ..packing import Patch, patchify, unpatchify
from ..words import counted

if TYPE_CHECKING:
    from .sampling import Batch

OutputType = Literal["pil", "np", "pt", "latent", "uint8"]
OnStepEnd = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None]
Generators = torch.Generator | Sequence[torch.Generator]


@dataclass
class VideoOutput(BaseOutput):
    """frames: the clips, as `shown_as` gives them. fps: at which they are meant to be shown; a list where the call had
    one."""

    frames: Any
    fps: float | list[float]


def check_output_type(asked: str) -> None:
    """Raises UserError for an unknown one."""
    if asked not in get_args(OutputType):
        raise UserError(f"output_type={asked!r}: choose {', '.join(get_args(OutputType))}")


def shown_as(clips: Sequence[Tensor], output_type: OutputType) -> Any:
    """Clips uint8 [F,H,W,3] as one of:

    - "pil": a list of PIL's pictures for each clip.
    - "np": float32 [B,F,H,W,3] in 0 to 1; "pt": the same as a tensor [B,F,3,H,W]. Clips of unequal sizes: a list of
      those without B.
    - "uint8": a list of tensors uint8 [F,H,W,3].
    """
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in clip.cpu().numpy()] for clip in clips]
    if output_type == "np":
        arrays = [clip.cpu().numpy().astype(np.float32) / 255 for clip in clips]
        return np.stack(arrays) if _equal(arrays) else arrays
    if output_type == "pt":
        return together([clip.permute(0, 3, 1, 2).float() / 255 for clip in clips])
    return list(clips)


def together(clips: Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Tensors of one shape as one, with B in front; of several shapes, as they are."""
    return torch.stack(list(clips)) if _equal(clips) else list(clips)


def _equal(clips: Sequence[Any]) -> bool:
    return len({tuple(clip.shape) for clip in clips}) == 1


def seeds_of(generator: Generators | None, seed: int | None, prompts: int) -> list[int]:
    """The seed of each prompt's noise: the next number of its generator, or `seed + i` (None: of 0).

    generator: of all prompts, which draw one after another, or one for each. Raises UserError where both are given, or
    a number of generators that is not that of the prompts.
    """
    if generator is None:
        return [check("seed", (seed or 0) + i) for i in range(prompts)]
    if seed is not None:
        raise UserError("generator and seed both say which noise to take: give one of them")
    each = [generator] * prompts if isinstance(generator, torch.Generator) else list(generator)
    if len(each) != prompts:
        raise UserError(
            f"generator: {counted(len(each), 'generator')} for {counted(prompts, 'prompt')}; give one, or one a prompt"
        )
    return [int(torch.randint(LONG, (), generator=one, device=one.device)) for one in each]


def checked_callback(callback: OnStepEnd | None, inputs: Sequence[str], known: Sequence[str]) -> OnStepEnd | None:
    """The callback, where it asks for nothing that there is not. Raises UserError."""
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        inputs = callback.tensor_inputs
    if unknown := [name for name in inputs if name not in known]:
        raise UserError(f"callback_on_step_end_tensor_inputs: no {unknown[0]} here: choose of {', '.join(known)}")
    return callback


def step_ender(pipeline: Any, callback: OnStepEnd, batch: Batch, patch: Patch) -> OnStep:
    """For `solvers.solve`: what calls diffusers' kind of callback at the end of a step.

    It is called with (pipeline, step from 0, noise level [] that the step began at, {"latents": normalised latents
    [B,C,f,h,w], or a list of [C,f,h,w] where they differ in size}) and may return the dictionary with other latents.
    Where it sets `pipeline._interrupt` to True, the run ends after the step.
    """
    frames = [request.grid[0] for request in batch.requests]

    def end(step: int, z: Tensor) -> Tensor | None:
        latents = together(unpatchify(z, batch.layout, patch, frames))
        told = callback(pipeline, step, batch.levels[step].max(), {"latents": latents}) or {}
        changed = told.get("latents", latents)
        if changed is not latents:
            z = _put(z, list(changed), batch, patch)
        return None if pipeline.interrupt else z

    return end


def _put(z: Tensor, latents: Sequence[Tensor], batch: Batch, patch: Patch) -> Tensor:
    """z [T,P] with the samples' own tokens of these latents. Raises UserError for latents of other shapes."""
    z = z.clone()
    own = batch.layout.own(z)
    made = [patchify([one], patch)[0] for one in latents]
    if [part.shape for part in own] != [part.shape for part in made]:
        raise UserError("callback_on_step_end: it returned latents of another shape than it was given")
    for part, new in zip(own, made, strict=True):
        part.copy_(new)
    return z
