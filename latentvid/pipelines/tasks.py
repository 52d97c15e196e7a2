"""Clips from pictures that they begin or end with.

Axes: F frames, H height, W width; clips are uint8 [F,H,W,3], pictures uint8 [H,W,3]; C channels, f h w of the latents.
What is asked for together is sampled as one pack, and the i-th clip has the noise of `seed + i`, whatever is with it.
`fps`: frames a second that all are made for, by models that know of it (None: the model's).
Each function raises UserError for sizes that the model cannot make.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from ..errors import UserError
from ..limits import check
from ..words import counted
from .defaults import TOKENS_PER_PACK
from .latent_video import LatentVideoPipeline
from .packs import tokens_of
from .references import Given, encoded
from .sampling import Request, Sampling, one_each, same_number, with_frames


def image_to_video(
    pipeline: LatentVideoPipeline,
    images: Sequence[Tensor],
    prompts: Sequence[str],
    num_frames: int | Sequence[int] | None = None,
    *,
    fps: float | Sequence[float | None] | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    references: Given | Sequence[Given | None] | None = None,
    sampling: Sampling | None = None,
) -> list[Tensor]:
    """Clips of `num_frames` frames (None: the model's) that begin with the pictures, as the VAE shows them.

    num_frames and fps: of all of them, or one each. references: as in a call of the pipeline, the same.
    """
    same_number(images=images, prompts=prompts)
    sampling, count = sampling or Sampling(), len(images)
    lengths, rates = one_each(num_frames, count, "num_frames"), one_each(fps, count, "fps")
    grids = [
        pipeline.latent_grid(n or pipeline.config.frames, *image.shape[:2])
        for n, image in zip(lengths, images, strict=True)
    ]
    begun = pipeline.begin_with(images, grids, sampling.precision, seed=seed, sampling=sampling)
    shown = encoded(pipeline, one_each(references, len(prompts), "references"), sampling.precision)
    requests = []
    for i, (grid, known, prompt) in enumerate(zip(grids, begun, prompts, strict=True)):
        words = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed + i, "references": shown[i]}
        requests.append(Request(**words, grid=grid, fps=pipeline.rate(rates[i], grid), **known))
    return pipeline.decode(pipeline.sample(requests, sampling), sampling.precision)


def interpolate(
    pipeline: LatentVideoPipeline,
    firsts: Sequence[Tensor],
    lasts: Sequence[Tensor],
    prompts: Sequence[str],
    between: int,
    *,
    fps: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampling: Sampling | None = None,
) -> list[Tensor]:
    """Clips [between + 2,H,W,3] from each first picture to its last, both as the VAE shows them.

    The last latent frame stands for `temporal_stride` frames: it is given as that of the last picture held still. A
    causal VAE shows it as a change of what is before, which the frames that were made need not lead up to: what is
    shown in its place is the last picture by itself, as the first one is. So the model makes multiples of
    `temporal_stride` frames between the two; of other numbers, those nearest in time of the next larger multiple are
    taken. fps: of what is returned.
    """
    same_number(firsts=firsts, lasts=lasts, prompts=prompts)
    check_ends(pipeline, sampling)
    sampling, stride = sampling or Sampling(), pipeline.codec.temporal_stride
    for first, last in zip(firsts, lasts, strict=True):
        if first.shape != last.shape:
            a, b = (" x ".join(map(str, x.shape[:2])) for x in (first, last))
            raise UserError(f"the first picture is {a} pixels, the last {b}: they must be of one size")
    rate, words = pipeline.config.fps if fps is None else fps, {"negative_prompt": negative_prompt}
    if pipeline.takes_last:
        return _between_pictures(pipeline, firsts, lasts, prompts, between, rate, seed, sampling, words)
    made = made_between(check("between", between), stride)
    heads = pipeline.encode([first[None] for first in firsts], sampling.precision)
    tails = pipeline.encode([repeat(x, "h w c -> f h w c", f=1 + stride) for x in lasts], sampling.precision)
    requests = []
    for i, (head, tail, prompt) in enumerate(zip(heads, tails, prompts, strict=True)):
        grid = pipeline.latent_grid(1 + made + stride, *firsts[i].shape[:2])
        known = with_frames(grid, {0: head, -1: tail[:, -1:]})
        made_at = pipeline.rate(rate, grid) * (made + 1) / (between + 1)  # more frames in the same time
        requests.append(Request(**words, prompt=prompt, seed=seed + i, grid=grid, fps=made_at, **known))
    shown = (torch.arange(between + 1) * ((made + 1) / (between + 1))).round().long()
    clips = pipeline.decode(pipeline.sample(requests, sampling), sampling.precision)
    ends = pipeline.decode(pipeline.encode([last[None] for last in lasts], sampling.precision), sampling.precision)
    return [torch.cat([clip[shown], end]) for clip, end in zip(clips, ends, strict=True)]


def _between_pictures(
    pipeline: LatentVideoPipeline,
    firsts: Sequence[Tensor],
    lasts: Sequence[Tensor],
    prompts: Sequence[str],
    between: int,
    rate: float,
    seed: int,
    sampling: Sampling,
    words: Mapping[str, Any],
) -> list[Tensor]:
    """`interpolate` by a model that is told both pictures by further channels, the last as its last frame."""
    span = made_between(check("between", between) + 1, pipeline.codec.temporal_stride)
    grids = [pipeline.latent_grid(1 + span, *first.shape[:2]) for first in firsts]
    begun = pipeline.begin_with(firsts, grids, sampling.precision, lasts)
    requests = []
    for i, (grid, known, prompt) in enumerate(zip(grids, begun, prompts, strict=True)):
        made_at = pipeline.rate(rate, grid) * span / (between + 1)
        requests.append(Request(**words, prompt=prompt, seed=seed + i, grid=grid, fps=made_at, **known))
    shown = (torch.arange(between + 2) * (span / (between + 1))).round().long()
    return [clip[shown] for clip in pipeline.decode(pipeline.sample(requests, sampling), sampling.precision)]


def check_ends(pipeline: LatentVideoPipeline, sampling: Sampling | None) -> None:
    """Raises UserError where two ends would be given, as in training, to a model that never saw a last frame given."""
    if pipeline.as_trained(sampling) and not {"ends", "random"} & set(pipeline.config.given):
        raise UserError(
            f"this model was trained with {', '.join(sorted(pipeline.config.given))} frames given, never with the last "
            "one: ask for condition 'reconstruction', or train it with ends or random"
        )


def makes_between(pipeline: LatentVideoPipeline, between: int) -> int:
    """How many frames the pipeline makes between two pictures where so many are wanted (`interpolate`)."""
    stride = pipeline.codec.temporal_stride
    return made_between(between + 1, stride) - 1 if pipeline.takes_last else made_between(between, stride)


def made_between(between: int, temporal_stride: int) -> int:
    """The next multiple of the stride."""
    return -(-between // temporal_stride) * temporal_stride


def raise_rate(
    pipeline: LatentVideoPipeline,
    clip: Tensor,
    factor: int,
    prompt: str = "",
    *,
    tokens_per_pack: int = TOKENS_PER_PACK,
    fps: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampling: Sampling | None = None,
) -> Tensor:
    """A clip [F,H,W,3] at `factor` times its rate, [(F - 1) factor + 1,H,W,3]: `interpolate` between all neighbours.

    Every factor-th frame is one of the clip's, as the VAE shows it. fps: of what is returned. As many pairs are sampled
    together as have `tokens_per_pack` tokens; the i-th has the noise of `seed + i`.
    """
    check_factor(len(clip), factor)
    words = {"fps": fps, "seed": seed, "negative_prompt": negative_prompt, "sampling": sampling}
    return torch.cat(list(filled_in(pipeline, iter([clip]), factor, prompt, tokens_per_pack=tokens_per_pack, **words)))


def check_factor(frames: int, factor: int) -> None:
    """Raises UserError for a clip of so many frames that cannot be given `factor` times as many."""
    if factor < 2 or frames < 2:
        raise UserError(f"{counted(frames, 'frame')} at {factor} times the rate: at least 2 of each are needed")


def filled_in(
    pipeline: LatentVideoPipeline,
    chunks: Iterator[Tensor],
    factor: int,
    prompt: str = "",
    *,
    tokens_per_pack: int = TOKENS_PER_PACK,
    seed: int = 0,
    **words: Any,
) -> Iterator[Tensor]:
    """`raise_rate` of a clip that comes in chunks [F,H,W,3], yielded as it is made, in memory that does not grow."""
    held, done = next(chunks), 0
    stride = pipeline.codec.temporal_stride
    grid = pipeline.latent_grid(1 + made_between(factor - 1, stride) + stride, *held.shape[1:3])
    together = max(1, tokens_per_pack // tokens_of(pipeline, grid))
    last = None
    while True:
        while len(held) <= together and (chunk := next(chunks, None)) is not None:
            held = torch.cat([held, chunk])
        pairs = min(together, len(held) - 1)
        if not pairs:
            break
        ends = held[: pairs + 1]
        made = interpolate(pipeline, ends[:-1], ends[1:], [prompt] * pairs, factor - 1, seed=seed + done, **words)
        yield torch.cat([clip[:-1] for clip in made])
        held, done, last = held[pairs:], done + pairs, made[-1][-1:]
    if last is not None:
        yield last
