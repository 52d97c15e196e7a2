"""Style transfer: clips in the look of a picture.

A clip's inverted noise is sampled anew while it sees the picture: by reference tokens, where the model was trained with
the role `style`, and else by attention that both share (StyleAligned, Hertz et al. 2023).

Axes: F frames, H height, W width; clips are uint8 [F,H,W,3], pictures uint8 [H,W,3]; latents are [C,f,h,w]; T tokens of
a pack, R latent frames, K steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.video.reading import probe
from ..diffusion.guidance import Guidance
from ..diffusion.inversion import invert
from ..diffusion.solvers import solve
from ..errors import UserError
from ..limits import check
from ..models.style import Pair, StyleAligned, shared_attentions
from ..packing import patchify, unpatchify
from .clip_windows import Window
from .defaults import STYLE_SCALE, STYLE_STRENGTH
from .edits import GUIDED_BELOW
from .inputs import read_picture
from .latent_video import LatentVideoPipeline
from .local import Local, encode_whole
from .references import encoded, read_references
from .sampling import Request, Sampling, same_number
from .sources import Source

ROLE = "style"  # of a model that was trained to take looks of pictures


def style_window(
    pipeline: LatentVideoPipeline,
    picture: Tensor,
    prompt: str,
    window: Window,
    *,
    picture_prompt: str | None = None,
    seed: int = 0,
    **words: Any,
) -> Tensor:
    """`style` of a window of a clip, within its mask, which goes on from what the one before made of its beginning."""
    words |= {"masks": [window.mask], "begun": [window.begun], "seed": window.seed(seed)}
    words["picture_prompts"] = None if picture_prompt is None else [picture_prompt]
    return style(pipeline, [window.frames], [picture], [prompt], **words)[0]


def style_picture(pipeline: LatentVideoPipeline, path: Path, source: Source, large: bool = False) -> Tensor:
    """A picture uint8 [H,W,3] in a size that the model makes, next to its own; where the model has the role, in that
    of its training. Raises UserError for a clip of several frames."""
    if ROLE not in pipeline.roles:
        return read_picture(path, pipeline, large=large).frames[0]
    if (count := probe(path).frames) != 1:
        raise UserError(f"{path} has {count} frames where one picture is wanted: save the frame that you mean as a png")
    return read_references(pipeline, [(ROLE, path)], source.plan.size, *source.canvas.size)[ROLE][0][0]


def check_style(pipeline: LatentVideoPipeline, sampling: Sampling) -> bool:
    """Whether the model was trained with the role `style`. Raises UserError where it has not, and does not share
    attention either, and for what inversion cannot do."""
    if pipeline.student is not None:
        raise UserError(
            "style transfer finds the noise of clips without guidance, and begins at a level in between, which this "
            "distilled model cannot: take its teacher"
        )
    sampling.by_euler("style transfer inverts and samples with solver 'euler', not")
    trained = ROLE in pipeline.roles
    if sampling.on_step_end is not None and not trained:
        raise UserError("on_step_end is told states of clips alone, and here pictures go with them: leave it out")
    if not trained:
        shared_attentions(pipeline.transformer)
    return trained


def style(
    pipeline: LatentVideoPipeline,
    clips: Sequence[Tensor],
    pictures: Sequence[Tensor],
    prompts: Sequence[str],
    *,
    picture_prompts: Sequence[str] | None = None,
    strength: float | None = None,
    scale: float | None = None,
    masks: Sequence[Tensor | None] | None = None,
    begun: Sequence[Tensor | None] | None = None,
    fps: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampling: Sampling | None = None,
) -> list[Tensor]:
    """The clips, of any lengths, each in the look of its picture.

    The noise that leads to a clip, found without guidance at noise level `strength` (None: `STYLE_STRENGTH`), gets the
    mean and deviation of the picture's, channel by channel (AdaIN of the noise: Chung et al. 2024, eq. 6), and is
    sampled anew. A model of the role `style` is shown the picture. Any other VideoDiT shares its attention with it, as
    the picture's own inversion passes the same levels; `scale` is that of `StyleAligned`.

    prompts: what each clip shows, "" for nothing said: then there is nothing to guide by. Guidance acts at levels
    below `GUIDED_BELOW` unless it has an interval of its own. picture_prompts: what the pictures show, of shared
    attention. masks, begun: as in `edit`. Raises UserError for sizes that the model cannot make, and for models that
    can do neither.
    """
    same_number(clips=clips, pictures=pictures, prompts=prompts)
    sampling = replace(sampling or Sampling(), solver=(sampling or Sampling()).solver or "euler")
    trained = check_style(pipeline, sampling)
    if trained and (scale is not None or picture_prompts is not None):
        raise UserError(
            "this model was trained with a reference of role style, which it is shown: a scale, and prompts of "
            "pictures, are of attention that is shared: leave --style-scale and --style-prompt out"
        )
    level = check("strength", STYLE_STRENGTH if strength is None else strength)
    local = Local.of(pipeline, clips, masks, begun, sampling)
    latents = encode_whole(pipeline, clips, sampling)
    shown = encode_whole(pipeline, [picture[None] for picture in pictures], sampling)
    words = [
        {"grid": (grid := tuple(z.shape[1:])), "fps": pipeline.rate(fps, grid), "seed": seed + i, "level": level}
        for i, z in enumerate(latents)
    ]
    beside = [{"grid": tuple(z.shape[1:]), "level": level, "prompt": ""} for z in shown]
    for each, prompt in zip(beside, picture_prompts or (), strict=picture_prompts is not None):
        each["prompt"] = prompt
    back = [Request(prompt=prompt, **each) for prompt, each in zip(prompts, words, strict=True)]
    passed = inverted(pipeline, [*latents, *shown], [*back, *(Request(**each) for each in beside)], sampling)
    starts = [with_moments(z, of) for z, of in zip(passed[0], passed[0][len(clips) :], strict=False)]
    references = [{}] * len(clips)
    if trained:
        references = encoded(pipeline, [{ROLE: picture} for picture in pictures], sampling.precision)
    requests = [
        Request(prompt=prompt, negative_prompt=negative_prompt, start=z, references=of, **each, **known)
        for prompt, z, of, each, known in zip(prompts, starts, references, words, local.known(latents), strict=True)
    ]
    sampling = local.sampling(_guided(pipeline, sampling, requests))
    if trained:
        made = pipeline.sample(requests, sampling)
    else:
        more = [Request(start=z, **each) for z, each in zip(passed[0][len(clips) :], beside, strict=True)]
        made = _together(pipeline, requests, more, passed, STYLE_SCALE if scale is None else scale, sampling)
    made = pipeline.decode(made, sampling.precision)
    return local.put_back([new[: len(old)] for new, old in zip(made, clips, strict=True)])


def with_moments(z: Tensor, of: Tensor) -> Tensor:
    """z [C,f,h,w] with the mean and deviation of each channel of `of` [C,f',h',w']."""
    (mean, deviation), (wanted, wide) = ((x.mean((1, 2, 3), True), x.std((1, 2, 3), keepdim=True)) for x in (z, of))
    return (z - mean) / deviation.clamp_min(1e-5) * wide + wanted


@torch.no_grad()
def inverted(
    pipeline: LatentVideoPipeline, latents: Sequence[Tensor], requests: Sequence[Request], sampling: Sampling
) -> list[list[Tensor]]:
    """The latents [C,f,h,w] at each of the K+1 levels, of most noise first, as DDIM inversion passes them."""
    started = [replace(r, start=z) for r, z in zip(requests, latents, strict=True)]
    frames, patch = [r.grid[0] for r in requests], pipeline.transformer.patch
    with pipeline._autocast(sampling.precision):
        batch, predict = pipeline._prepare(started, replace(sampling, guidance=Guidance()))
        z, passed = batch.z, [unpatchify(batch.z, batch.layout, patch, frames)]
        for i in pipeline.progress_bar(range(len(batch.levels) - 2, -1, -1)):
            z = invert(pipeline.scheduler, predict, z, batch.levels[i : i + 2], batch.layout, iterations=0).z
            passed.append(unpatchify(z, batch.layout, patch, frames))
    return passed[::-1]


def _guided(pipeline: LatentVideoPipeline, sampling: Sampling, requests: Sequence[Request]) -> Sampling:
    """With guidance below `GUIDED_BELOW`, or none where nothing is said to guide by."""
    words = ((r.prompt, pipeline.negative_prompt if r.negative_prompt is None else r.negative_prompt) for r in requests)
    if all(prompt == negative for prompt, negative in words) and not any(r.references for r in requests):
        return replace(sampling, guidance=Guidance())
    return pipeline.of_changes(sampling, (0.0, GUIDED_BELOW))


@torch.no_grad()
def _together(
    pipeline: LatentVideoPipeline,
    requests: Sequence[Request],
    pictures: Sequence[Request],
    passed: Sequence[Sequence[Tensor]],
    scale: float,
    sampling: Sampling,
) -> list[Tensor]:
    """Latents of the requests, sampled beside their pictures, which are at each level as their inversion passed it."""
    count = len(requests)
    with pipeline._autocast(sampling.precision):
        batch, predict = pipeline._prepare([*requests, *pictures], sampling)
        layout, step = batch.layout, iter(range(1, len(passed)))
        first = sum(layout.lengths[:count])  # of the pictures' tokens
        shared = StyleAligned(
            pipeline.transformer, layout.grid, [Pair(i, count + i) for i in range(count)], scale=scale
        )

        def after(z: Tensor, t: Tensor) -> Tensor:
            tokens, _ = patchify(passed[next(step)][count:], pipeline.transformer.patch)
            return torch.cat([batch.put_back(pipeline.scheduler, z, t)[:first], tokens.to(z)])

        with shared.acting():
            z = solve(
                pipeline.scheduler,
                predict,
                batch.z,
                batch.levels,
                layout,
                after=after,
                progress=pipeline.progress_bar,
            )
    frames = [r.grid[0] for r in (*requests, *pictures)]
    return unpatchify(batch.finished(z), layout, pipeline.transformer.patch, frames)[:count]
