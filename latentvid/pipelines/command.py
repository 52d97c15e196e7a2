"""What the options of the inference scripts (arguments.py) mean for a pipeline, and what is said of it.

Axes: F frames, H height, W width in pixels.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import precision
from ..attention import describe_backend, resolve_backend
from ..errors import UserError
from ..words import counted
from .arguments import clip_options, loading
from .attention_masks import attention_mask, tokens_of_words
from .cascade import Cascade, Stage, open_stages
from .clip_windows import Window
from .latent_video import LatentVideoPipeline
from .limit import check_room, knows_rates, trained_area, trained_frames, trained_rates
from .loading import load_pipeline
from .local import reconstruct
from .outputs import check_edited, check_output
from .references import check_noise
from .sampling import Sampling
from .sources import Mask, Source, open_mask, open_source

_GUIDANCE = {
    "guidance": "scale",
    "guidance_rescale": "rescale",
    "guidance_interval": "interval",
    "zero_init": "zero_init",
}


def open_model(args: argparse.Namespace) -> tuple[LatentVideoPipeline, Sampling]:
    """The pipeline that the parsed arguments name, and how to sample from it."""
    pipeline = load_pipeline(args.model, args.device, **loading(args))
    return pipeline, sampling_of(args, pipeline)


def open_clip(args: argparse.Namespace, pipeline: LatentVideoPipeline, **more: Any) -> tuple[Source, float]:
    """The clip to make anew that the parsed arguments name, and the frame rate of what is made of it, for `--output`,
    which is checked. more: as `open_source` has it."""
    source = open_source(args.clip, pipeline, **more, **clip_options(args))
    fps = args.fps or source.fps
    check_edited(args.output, source, fps)
    note_rate(pipeline, fps, args.fps)
    return source, fps


def sampling_of(args: argparse.Namespace, pipeline: LatentVideoPipeline) -> Sampling:
    """How to sample, as the parsed arguments say; where nothing was said, the model's own."""
    asked = {name: getattr(args, argument) for argument, name in _GUIDANCE.items()}
    asked = {name: tuple(v) if isinstance(v, list) else v for name, v in asked.items() if v is not None}
    names = ("condition", "reconstruction_weight", "guidance_low", "guidance_embedded")
    names += ("reference_noise", "image_noise", "motion_strength")
    options = {name: getattr(args, name) for name in names if hasattr(args, name)}
    guidance = replace(pipeline.guidance(), **asked) if asked else None
    if args.mixed_precision != "auto" or getattr(args, "prompts", None) is None:  # --prompts looks first
        computed = precision.choose(args.mixed_precision, pipeline.device)
        told = [precision.describe(computed, pipeline.device), attention_of(pipeline, precision.dtype_of(computed))]
        print(*filter(None, told), sep="\n", file=sys.stderr, flush=True)
        options["precision"] = precision.dtype_of(computed)
    options["large"] = args.large
    sampling = Sampling(steps=args.steps, solver=args.solver, guidance=guidance, **options)
    pipeline.check_sampling(sampling)
    return sampling


def attention_of(pipeline: LatentVideoPipeline, dtype: torch.dtype) -> str | None:
    """Which kernel attends on a GPU, in words; None on CPUs, where there is one for all."""
    name = getattr(pipeline.transformer, "attention_backend", None)
    if name is None or pipeline.device.type != "cuda":
        return None
    return describe_backend(resolve_backend(name, pipeline.device, dtype), pipeline.device)


def cascade_of(
    args: argparse.Namespace,
    pipeline: LatentVideoPipeline,
    prompts: Sequence[str],
    size: tuple[int, int, int],
    fps: float,
) -> Cascade:
    """The stages of --then behind clips (F, H, W) `size` of the pipeline. Raises UserError where one cannot take what
    comes to it."""
    stages, (frames, *sides) = open_stages(args.then, pipeline.device, args.mixed_precision), size
    cascade = Cascade.of(stages, frames, tuple(sides), fps, prompts, args.large, args.negative_prompt)
    of_stages(args, stages)  # what it refuses, before the base's clips are made
    say_stages(cascade, frames, tuple(sides), fps)
    return cascade


def check_held(args: argparse.Namespace, cascade: Cascade) -> None:
    """Raises UserError where what the last stage makes, which is held whole, has no room, or no place in the output."""
    for made, size, rate in cascade.made[-1:]:
        check_room(made, *size)
        check_output(args.output, rate, len(args.prompt))


def say_stages(cascade: Cascade, frames: int, size: tuple[int, int], fps: float) -> None:
    """Prints what each stage makes of what comes to it."""
    for stage, plan, (made, larger, rate) in zip(cascade.stages, cascade.plans, cascade.made, strict=True):
        note_rate(stage.pipeline, rate, None)
        parts = ""
        if plan is not None:
            windows, tiles = len(plan.firsts), len(plan.rows) * len(plan.columns)
            parts = f", in {counted(windows, 'window')} of {counted(plan.window, 'frame')}" if windows > 1 else ""
            parts += f", in {counted(tiles, 'tile')} of {plan.tile[0]} x {plan.tile[1]} pixels" if tiles > 1 else ""
        print(
            f"{stage.said}: {counted(frames, 'frame')} of {size[0]} x {size[1]} at {fps:g} fps -> "
            f"{made} of {larger[0]} x "
            f"{larger[1]} at {rate:g}{parts}",
            flush=True,
        )
        frames, size, fps = made, larger, rate


def refined(
    args: argparse.Namespace, cascade: Cascade, clips: Sequence[Tensor], prompts: Sequence[str], fps: float
) -> tuple[list[Tensor], float]:
    """Clips [F,H,W,3] at `fps` after the stages of --then, which are as they are where there is none, and their fps."""
    if not cascade.stages:
        return list(clips), fps
    words = {"negative_prompt": args.negative_prompt, "samplings": of_stages(args, cascade.stages)}
    found = []
    for i, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
        found.append(torch.cat(list(cascade.run(iter([clip]), prompt, seed=args.seed + i, **words))))
    return found, cascade.made[-1][2]


def streamed(args: argparse.Namespace, cascade: Cascade, pieces: Iterator[Tensor], prompt: str) -> Iterator[Tensor]:
    """A clip that comes in pieces [F,H,W,3] after the stages of --then, as it is made."""
    words = {"negative_prompt": args.negative_prompt, "samplings": of_stages(args, cascade.stages)}
    return cascade.run(pieces, prompt, seed=args.seed, **words)


def of_stages(args: argparse.Namespace, stages: Sequence[Stage]) -> list[Sampling]:
    """How the stages of --then sample: each as its own model does, in the precision and with the noise asked for.
    Raises UserError for noise that none of them has, and for a level that one was not trained with."""
    noisy = [stage.model is not None and stage.model.role.noise is not None for stage in stages]
    noise = getattr(args, "reference_noise", None)
    if noise is not None and stages and not any(noisy):
        raise UserError("--reference-noise: no model here was trained with noise in references: leave it out")
    found = []
    for stage, has in zip(stages, noisy, strict=True):
        if has:
            check_noise(noise, stage.pipeline.roles)
        computed = precision.dtype_of(precision.choose(args.mixed_precision, stage.pipeline.device))
        own = noise if has else None
        found.append(Sampling(precision=computed, reference_noise=own, large=args.large, progress=False))
    return found


def asked_frames(frames: int | None, seconds: float | None, fps: float) -> int:
    """The frames that --frames, or --seconds at so many a second, ask for. Raises UserError for none."""
    if frames is not None:
        return frames
    if not seconds * fps > 0.5:
        raise UserError(f"--seconds {seconds:g}: at {fps:g} fps this is less than a frame; ask for more")
    return round(seconds * fps)


def legal_frames(pipeline: LatentVideoPipeline, frames: int | None, seconds: float | None, fps: float) -> int | None:
    """The frames that --frames or --seconds ask for, those of --seconds as the model makes them; None for neither."""
    if seconds is None:
        return frames
    asked, made = asked_frames(None, seconds, fps), frames_of(pipeline, seconds, fps)
    if made != asked:
        print(f"{seconds:g} s at {fps:g} fps: the model makes {counted(made, 'frame')}, {made / fps:.3g} s", flush=True)
    return made


def frames_of(pipeline: LatentVideoPipeline, seconds: float, fps: float) -> int:
    """The length that the model makes next to so many seconds. Raises UserError for less than a frame."""
    stride = pipeline.codec.temporal_stride
    return 1 + max(0, round((asked_frames(None, seconds, fps) - 1) / stride)) * stride


def mask_of(
    args: argparse.Namespace, pipeline: LatentVideoPipeline, source: Source, sampling: Sampling, grow: int | None
) -> Mask | None:
    """The mask that limits a change, by --mask, --grow and --outside, or of a source that is painted beyond its edges;
    None: it is nowhere limited. Raises UserError."""
    if args.mask is None and source.beyond is None:
        if args.grow is not None or args.outside is not None:
            raise UserError("--grow and --outside are of a mask: give --mask, or leave them out")
        return None
    outside = partial(reconstruct, pipeline, sampling=sampling) if args.outside == "reconstruction" else None
    return open_mask(args.mask, source, grow, outside)


def mask_by_words(args: argparse.Namespace, pipeline: LatentVideoPipeline, sampling: Sampling, prompt: str) -> Mask:
    """The mask of --mask-words, which are part of a prompt for the clip as it is, with --grow and --outside. Raises
    UserError."""
    if args.mask is not None:
        raise UserError("--mask and --mask-words are two masks: give one")
    tokens_of_words(pipeline, prompt, args.mask_words)
    outside = partial(reconstruct, pipeline, sampling=sampling) if args.outside == "reconstruction" else None

    def find(window: Window) -> Tensor:
        words = {"fps": args.fps, "seed": args.seed, "sampling": sampling}
        return attention_mask(pipeline, window.frames, prompt, args.mask_words, **words)

    return Mask(None, args.grow or 0, outside, find=find)


def note_size(pipeline: LatentVideoPipeline, frames: int, height: int | None = None, width: int | None = None) -> None:
    """Says on stderr where a clip is longer or larger than all that the model was trained on."""
    longest, area = trained_frames(pipeline), trained_area(pipeline)
    size = height or pipeline.config.height, width or pipeline.config.width
    beyond = [f"{counted(frames, 'frame')} (at most {longest})"] if frames > longest else []
    beyond += [f"{size[0]} x {size[1]} pixels (at most {area:,})"] if size[0] * size[1] > area else []
    if beyond:
        print(f"note: the model was trained on less than {' and '.join(beyond)}", file=sys.stderr, flush=True)


def note_rate(pipeline: LatentVideoPipeline, fps: float, asked: float | None) -> None:
    """Says on stderr where the model does not know of a clip's `fps`; `asked`: what --fps said."""
    known, (low, high) = knows_rates(pipeline), trained_rates(pipeline) or (0.0, math.inf)
    note = ""
    if known and not 0.999 * low <= fps <= 1.001 * high:
        note = f"{counted(fps, 'frame')} a second: the model was trained on {low:g} to {high:g}"
    elif not known and asked is not None and abs(asked - pipeline.config.fps) > 1e-3 * asked:
        note = (
            f"--fps {asked:g} plays the clip faster or slower, no more: the model was trained without "
            f"model.fps_condition, and things move as at its own {pipeline.config.fps:g}"
        )
    if note:
        print(f"note: {note}", file=sys.stderr, flush=True)


def note_condition(pipeline: LatentVideoPipeline, sampling: Sampling, *wanted: str) -> None:
    """Prints how what is given conditions a model that was trained without given frames, or without those `wanted`."""
    if pipeline.transformer.channels and pipeline.channel_kind == "none":  # a published model, told of pictures so
        return
    given, shares = set(pipeline.config.given), pipeline.config.given_shares or {}
    if wanted and (pipeline.told or given != {"plain"}) and not given & set(wanted):
        total = sum(shares.values()) or 1
        said = ", ".join(f"{name} {shares[name] / total:.0%}" if name in shares else name for name in sorted(given))
        print(
            f"note: this model was trained with {said} of given frames, none of which is {' or '.join(wanted)}: it "
            "does this badly",
            file=sys.stderr,
            flush=True,
        )
    if tuple(pipeline.config.given) == ("plain",) and sampling.condition is None and not pipeline.told:
        print("this model was trained without given frames: what is given guides it (reconstruction)", flush=True)
