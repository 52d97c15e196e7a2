"""Long clips from the whole to its parts: keyframes of all of it first, then what lies between them, level by level.

The order of NUWA-XL ("diffusion over diffusion", Yin et al. 2023). Unlike a rollout, each part is made with its end in
view, and all parts of a level are independent, so that they are sampled together.

Axes: F frames, H W height and width in pixels; clips are uint8 [F,H,W,3].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.transforms import first_frames
from ..errors import UserError
from ..limits import check
from ..rng import derived_seed
from ..words import counted
from .defaults import TOKENS_PER_PACK
from .latent_video import LatentVideoPipeline
from .limit import trained_rates
from .packs import packs, tokens_of
from .sampling import Request, Sampling
from .tasks import check_ends, interpolate


def nuwa_xl(
    pipeline: LatentVideoPipeline,
    prompt: str,
    num_frames: int,
    *,
    local_prompts: Sequence[str] | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    tokens_per_pack: int = TOKENS_PER_PACK,
    fps: float | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
) -> Iterator[Tensor]:
    """Yields the frames of one clip in order, uint8 [F',H,W,3] on the CPU, `num_frames` in all.

    The global clip, of the model's own length and with the noise of `seed`, tells the whole of `prompt`: keyframes
    evenly spaced in it are those of the long clip. `interpolate` then fills in between neighbours, at each level of
    `Plan`, in windows as long as the model's. Keyframes keep their pixels from level to level. The segments of a level
    are sampled in packs of `tokens_per_pack`; each has noise of its own, a function of `seed`, its level and number.
    In memory are the keyframes of the last level but one, and a pack.

    Args:
        local_prompts: one for each segment between the global keyframes (`Plan.segments`), where there are levels of
            infilling; None is `prompt` for all.
        height, width: None is the model's.
        fps: of the clip (None: the model's). To models that know of it each level tells its own, or the lowest that
            the model was trained on where that is higher: keyframes are far apart.

    Raises UserError, before anything is made, for lengths and sizes that cannot be.
    """
    sampling = sampling or Sampling()
    size = pipeline.config.height if height is None else height, pipeline.config.width if width is None else width
    plan = Plan.of(pipeline, num_frames)
    grid = pipeline.latent_grid(pipeline.config.frames, *size)
    prompts = [prompt] * plan.segments if local_prompts is None else list(local_prompts)
    if local_prompts is not None and not plan.levels:
        raise UserError(
            f"{counted(num_frames, 'frame')} make a single clip of this model, with no segments: leave "
            "local prompts out"
        )
    if len(prompts) != plan.segments:
        raise UserError(
            f"{counted(len(prompts), 'local prompt')} for {counted(plan.segments, 'segment')} between "
            f"the keyframes of {counted(num_frames, 'frame')}: "
            "give one a segment"
        )
    check("tokens_per_pack", tokens_per_pack)
    if plan.levels:
        check_ends(pipeline, sampling)
    final = pipeline.rate(fps, grid)
    rates = [_told(pipeline, final * share) for share in plan.rates(pipeline.config.frames)]
    request = Request(prompt=prompt, negative_prompt=negative_prompt, grid=grid, fps=rates[0], seed=seed)
    options = {"negative_prompt": negative_prompt, "sampling": sampling, "rates": rates[1:]}
    return _levels(pipeline, request, plan, prompts, tokens_per_pack, options)


@dataclass(frozen=True)
class Plan:
    """How many frames come from where.

    segments: between the global keyframes, of which there is one more. levels: of infilling. factor: into how many
    frames a level cuts the time between two keyframes. So there are `segments * factor^levels + 1` frames, of which the
    first `frames` are made.
    """

    frames: int
    segments: int
    levels: int
    factor: int

    @classmethod
    def of(cls, pipeline: LatentVideoPipeline, frames: int) -> Plan:
        """With as few levels as can be. Raises UserError for a clip of no frames, and for a model of single images."""
        most, stride = pipeline.config.frames - 1, pipeline.codec.temporal_stride
        if frames < 1:
            raise UserError(f"{counted(frames, 'frame')}: ask for at least 1")
        if not most:
            raise UserError("this model was trained for single images (frames 1 in its config): it makes no keyframes")
        # a window is the first keyframe, those between, and a latent frame for the last: see `interpolate`
        factor = 1 + max(stride, most - stride)
        levels = 0
        while most * factor**levels < frames - 1:
            levels += 1
        return cls(frames, max(1, math.ceil((frames - 1) / factor**levels)), levels, factor)

    def keyframes(self, level: int) -> int:
        """How many are needed after so many levels."""
        return 1 + math.ceil((self.frames - 1) / self.factor ** (self.levels - level))

    def rates(self, window: int) -> list[float]:
        """Of the global clip, of `window` frames, and after each level: frames a second over those of the whole."""
        whole = (window - 1) / (self.segments * self.factor**self.levels) if self.levels else 1.0
        return [whole, *(self.factor ** (level - self.levels) for level in range(1, self.levels + 1))]


def _told(pipeline: LatentVideoPipeline, fps: float) -> float:
    """The rate that the model is told."""
    return max(fps, (trained_rates(pipeline) or (1e-3,))[0])


@torch.no_grad()
def _levels(
    pipeline: LatentVideoPipeline,
    request: Request,
    plan: Plan,
    prompts: Sequence[str],
    tokens_per_pack: int,
    options: dict,
) -> Iterator[Tensor]:
    sampling, rates = options["sampling"], options.pop("rates")
    (clip,) = pipeline.decode(pipeline.sample([request], sampling), sampling.precision)
    places = torch.linspace(0, len(clip) - 1, plan.segments + 1) if plan.levels else torch.arange(plan.frames)
    keys = clip[places.round().long()]
    for level in range(1, plan.levels + 1):
        # the prompt of a segment is that of the global one it lies in
        local = [prompts[i // plan.factor ** (level - 1)] for i in range(len(keys) - 1)]
        seed = derived_seed(request.seed, level, "infill")
        words = options | {"fps": rates[level - 1]}
        parts = _infilled(pipeline, keys, local, plan.factor, tokens_per_pack, seed, words)
        parts = first_frames(parts, plan.keyframes(level))
        if level == plan.levels:
            yield from parts
        else:
            keys = torch.cat(list(parts))
    if not plan.levels:
        yield keys


def _infilled(
    pipeline: LatentVideoPipeline,
    keys: Tensor,
    prompts: Sequence[str],
    factor: int,
    tokens_per_pack: int,
    seed: int,
    options: dict,
) -> Iterator[Tensor]:
    """The keyframes [K,H,W,3] with factor - 1 frames between neighbours, in order, a pack at a time."""
    window = factor + pipeline.codec.temporal_stride
    tokens = tokens_of(pipeline, pipeline.latent_grid(window, *keys.shape[1:3]))
    for pack in packs([tokens] * len(prompts), tokens_per_pack):
        first, last = pack[0], pack[-1] + 1
        ends = list(keys[first : last + 1])
        clips = interpolate(
            pipeline, ends[:-1], ends[1:], prompts[first:last], factor - 1, seed=seed + first, **options
        )
        # the keyframes themselves, not what the autoencoder makes of them once more
        parts = [part for key, clip in zip(ends, clips, strict=False) for part in (key[None], clip[1:-1])]
        yield torch.cat(parts)
    yield keys[-1:]
