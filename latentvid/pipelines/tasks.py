"""Clips from what is known of them: a first picture, two ends, all but a masked part, another clip.

Axes: F frames, H height, W width; clips are uint8 [F,H,W,3], pictures uint8 [H,W,3]; C channels, f h w of the latents.
What is asked for together is sampled as one pack, and the i-th clip has the noise of `seed + i`, whatever is with it.
`fps`: frames a second that all are made for, by models that know of it (None: the model's).
Each function raises UserError for sizes that the model cannot make.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..diffusion.guidance import Guidance
from ..errors import UserError
from ..limits import check
from ..packing import Grid, token_grid
from ..rng import derived_seed, generator
from .defaults import STRENGTH, TOKENS_PER_PACK
from .latent_video import LatentVideoPipeline
from .sampling import Request, Sampling, with_frames

GUIDED_BELOW = 0.7  # above, the noise that was found decides where things are: guidance would move them


def image_to_video(
    pipeline: LatentVideoPipeline,
    images: Sequence[Tensor],
    prompts: Sequence[str],
    frames: int | None = None,
    *,
    fps: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampling: Sampling | None = None,
) -> list[Tensor]:
    """Clips of `frames` frames (None: the model's) that begin with the pictures, as the VAE shows them."""
    _same_number(images=images, prompts=prompts)
    sampling = sampling or Sampling()
    grids = [pipeline.latent_grid(frames or pipeline.config.frames, *image.shape[:2]) for image in images]
    begun = pipeline.begin_with(images, grids, sampling.precision)
    requests = []
    for i, (grid, known, prompt) in enumerate(zip(grids, begun, prompts, strict=True)):
        words = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed + i}
        requests.append(Request(**words, grid=grid, fps=pipeline.rate(fps, grid), **known))
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

    The last latent frame stands for `temporal_stride` frames: it is given as that of the last picture held still, and
    what is shown of it is the first of those frames. So the model makes multiples of `temporal_stride` frames between
    the two; of other numbers, those nearest in time of the next larger multiple are taken. fps: of what is returned.
    """
    _same_number(firsts=firsts, lasts=lasts, prompts=prompts)
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
    shown = (torch.arange(between + 2) * ((made + 1) / (between + 1))).round().long()
    return [clip[shown] for clip in pipeline.decode(pipeline.sample(requests, sampling), sampling.precision)]


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
    """Raises UserError where two ends would be given by noise level to a model that never saw a last frame given."""
    if pipeline.by_levels(sampling) and not {"ends", "random"} & set(pipeline.config.given):
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
    if factor < 2 or len(clip) < 2:
        raise UserError(f"{len(clip)} frames at {factor} times their rate: at least 2 of each are needed")
    stride = pipeline.codec.temporal_stride
    grid = pipeline.latent_grid(1 + made_between(factor - 1, stride) + stride, *clip.shape[1:3])
    parts = []
    for pairs in packs([tokens_of(pipeline, grid)] * (len(clip) - 1), tokens_per_pack):
        part = slice(pairs[0], pairs[-1] + 1)
        words = {"fps": fps, "seed": seed + pairs[0], "negative_prompt": negative_prompt, "sampling": sampling}
        parts += interpolate(pipeline, clip[:-1][part], clip[1:][part], [prompt] * len(pairs), factor - 1, **words)
    return torch.cat([*(part[:-1] for part in parts), parts[-1][-1:]])


def inpaint(
    pipeline: LatentVideoPipeline,
    clips: Sequence[Tensor],
    masks: Sequence[Tensor],
    prompts: Sequence[str],
    *,
    fps: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampling: Sampling | None = None,
) -> list[Tensor]:
    """The clips, of any lengths, with what their masks show painted anew; all other pixels are the input's own.

    masks: bool (True: paint) or uint8 (128 and more: paint), [F,H,W] or [H,W] for all frames.
    A latent position is known where none of its pixels are painted, over all the frames that it stands for.
    """
    _same_number(clips=clips, masks=masks, prompts=prompts)
    sampling, vae = sampling or Sampling(), pipeline.codec
    paint = [_mask(i, mask, clip) for i, (mask, clip) in enumerate(zip(masks, clips, strict=True))]  # [F,H,W]
    latents = _encode_whole(pipeline, clips, sampling)
    requests = []
    for i, (latent, mask, prompt) in enumerate(zip(latents, paint, prompts, strict=True)):
        grid = tuple(latent.shape[1:])
        keep = whole_groups(~mask, vae.temporal_stride)
        known = known_latents(keep, vae.temporal_stride, vae.spatial_stride)
        words = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed + i}
        requests.append(Request(**words, grid=grid, fps=pipeline.rate(fps, grid), given=latent, known=known))
    made = pipeline.decode(pipeline.sample(requests, sampling), sampling.precision)
    return [
        torch.where(mask[..., None], new[: len(old)], old.cpu())
        for new, old, mask in zip(made, clips, paint, strict=True)
    ]


def inpaint_windows(
    pipeline: LatentVideoPipeline,
    clip: Tensor,
    mask: Tensor,
    prompt: str,
    *,
    window: int,
    fps: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampling: Sampling | None = None,
) -> Tensor:
    """`inpaint` of a clip of any length, by windows of so many frames. Each begins with the last frame of the one
    before as that was painted, so that it goes on from it; the noise of window k is that of a seed of its own."""
    paint, made = _mask(0, mask, clip), clip.cpu().clone()
    for k, start in enumerate(range(0, max(1, len(clip) - 1), max(1, window - 1))):
        part = slice(start, start + window)
        here = paint[part].clone()
        if k and window > 1:
            here[0] = False
        if here.any():
            words = {
                "seed": _window_seed(seed, k),
                "negative_prompt": negative_prompt,
                "sampling": sampling,
                "fps": fps,
            }
            made[part] = inpaint(pipeline, [made[part]], [here], [prompt], **words)[0]
    return made


def edit_windows(
    pipeline: LatentVideoPipeline,
    clip: Tensor,
    source: str,
    target: str,
    *how: str | float | None,
    window: int,
    seed: int = 0,
    **words: Any,
) -> Tensor:
    """`edit` of a clip of any length, by windows of so many frames, each by itself."""
    return torch.cat(
        [
            edit(pipeline, [part], [source], [target], *how, seed=_window_seed(seed, k), **words)[0]
            for k, part in enumerate(clip.split(window))
        ]
    )


def _window_seed(seed: int, window: int) -> int:
    return derived_seed(seed, window, "window") if window else seed


def edit(
    pipeline: LatentVideoPipeline,
    clips: Sequence[Tensor],
    sources: Sequence[str],
    targets: Sequence[str],
    mode: Literal["inversion", "sdedit"] = "inversion",
    strength: float | None = None,
    *,
    fps: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampling: Sampling | None = None,
) -> list[Tensor]:
    """The clips, of any lengths, as their target prompts say; the stronger, the less is left of them.

    inversion: the noise that leads to the clip with its source prompt and no guidance, at noise level `strength`
    (DDIM inversion, Song et al. 2020), is sampled anew with the target, guided at levels below `GUIDED_BELOW` alone
    unless the guidance has an interval of its own. sdedit: the clip with random noise of that level is (SDEdit, Meng et
    al. 2022; `sources` are not used). strength: in (0,1]; None is the mode's in `STRENGTH`.
    """
    _same_number(clips=clips, sources=sources, targets=targets)
    if mode not in STRENGTH:
        raise UserError(f"mode {mode!r}: one of {', '.join(STRENGTH)}")
    strength = STRENGTH[mode] if strength is None else strength
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength}: give a noise level above 0, up to 1")
    sampling = sampling or Sampling()
    if mode == "inversion" and sampling.solver is None:
        sampling = replace(sampling, solver="euler")  # the one that is inverted
    latents = _encode_whole(pipeline, clips, sampling)
    grids = [tuple(z.shape[1:]) for z in latents]
    common = [
        {"grid": grid, "fps": pipeline.rate(fps, grid), "seed": seed + i, "level": strength}
        for i, grid in enumerate(grids)
    ]
    if mode == "inversion":
        back = [Request(prompt=source, **words) for source, words in zip(sources, common, strict=True)]
        # no iterations: they bring the very clip back more exactly, by noise that another prompt can use less
        starts = pipeline.invert(latents, back, replace(sampling, guidance=Guidance()), iterations=0)
        guidance = pipeline.guidance(sampling)
        if guidance.interval is None:
            sampling = replace(sampling, guidance=replace(guidance, interval=(0.0, GUIDED_BELOW)))
    else:
        starts = [noised(pipeline, z, words["seed"], strength) for z, words in zip(latents, common, strict=True)]
    requests = [
        Request(prompt=target, negative_prompt=negative_prompt, start=start, **words)
        for target, start, words in zip(targets, starts, common, strict=True)
    ]
    made = pipeline.decode(pipeline.sample(requests, sampling), sampling.precision)
    return [new[: len(old)] for new, old in zip(made, clips, strict=True)]


def noised(pipeline: LatentVideoPipeline, latent: Tensor, seed: int, level: float) -> Tensor:
    """A latent [C,f,h,w] at the noise level nearest to `level` that the model's path has."""
    eps = torch.randn(latent.shape, generator=generator(seed, 0, "noised")).to(latent)
    return pipeline.scheduler.mix(latent, eps, pipeline.scheduler.path.snap(torch.tensor(level)).to(latent.device))


def whole_groups(frames: Tensor, stride: int) -> Tensor:
    """[F, ...] with its last frame repeated up to the next 1 + k * stride frames, which a causal VAE represents."""
    return torch.cat([frames, *[frames[-1:]] * (-(len(frames) - 1) % stride)])


def _encode_whole(pipeline: LatentVideoPipeline, clips: Sequence[Tensor], sampling: Sampling) -> list[Tensor]:
    """Latents [C,f,h,w] of clips of any lengths. Raises UserError for a size that the model does not make."""
    whole = [whole_groups(clip, pipeline.codec.temporal_stride) for clip in clips]
    for clip in whole:
        pipeline.latent_grid(*clip.shape[:3])
    return pipeline.encode(whole, sampling.precision)


def known_latents(keep: Tensor, temporal: int, spatial: int) -> Tensor:
    """Pixels bool [1 + k * temporal,H,W] -> bool [f,h,w]: positions all of whose pixels are kept."""
    keep = torch.cat([repeat(keep[:1], "1 h w -> t h w", t=temporal), keep[1:]])  # the first stands for one frame
    return rearrange(keep, "(f t) (h p) (w q) -> f h w (t p q)", t=temporal, p=spatial, q=spatial).all(-1)


def tokens_of(pipeline: LatentVideoPipeline, grid: Grid) -> int:
    """Tokens of a sample whose latent is (f,h,w)."""
    return math.prod(token_grid(grid, pipeline.transformer.patch))


def packs(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Numbers of the samples of these tokens, in order, cut into packs of at most `budget` (or one sample)."""
    found: list[list[int]] = []
    room = 0
    for i, n in enumerate(tokens):
        if not found or n > room:
            found.append([])
            room = budget
        found[-1].append(i)
        room -= n
    return found


def _mask(i: int, mask: Tensor, clip: Tensor) -> Tensor:
    """bool [F,H,W], True where to paint. Raises UserError for another size, and where nothing is to paint."""
    white = (mask if mask.dtype == torch.bool else mask >= 128).cpu()
    if white.shape not in (clip.shape[:3], clip.shape[1:3]):
        raise UserError(
            f"mask {i} is {' x '.join(map(str, white.shape))}, its clip {' x '.join(map(str, clip.shape[:3]))} "
            "(frames, height, width): give one of that size, or one picture of that height and width"
        )
    if not white.any():
        raise UserError(f"mask {i} is black all over: paint white what is to be made anew")
    return white.expand(clip.shape[:3])


def _same_number(**lists: Sequence) -> None:
    if len({len(values) for values in lists.values()}) != 1:
        raise ValueError("one of each is needed: " + ", ".join(f"{len(v)} {name}" for name, v in lists.items()))
