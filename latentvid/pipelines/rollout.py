"""Clips of any length in constant memory, window by window, yielded as they are made.

Axes: F frames, H W height and width in pixels; latents are [C,f,h,w], normalised.

Window 0 is the clip that the pipeline makes by itself. Every later one goes on from `context` frames, in one of two
ways, which need no more memory for an hour than for a second:

- encoded: the last frames made are encoded anew, as a window's beginning, and are given to the sampler. The
  autoencoder's first latent frame is a single picture, and models are trained on windows that begin so: this holds for
  each window. For any model.
- cached: a causal model keeps the keys and values of the last latent frames, and the decoder its own cache, so that
  nothing of the past is computed again. For causal models that were trained with given frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from ..data.transforms import to_uint8
from ..errors import UserError
from ..models.autoencoder import CausalVideoAutoencoder
from ..models.key_value_cache import KeyValueCache
from ..models.streaming import DecodeStream
from ..packing import Grid
from ..words import counted
from .latent_video import LatentVideoPipeline
from .limit import attention_of, check_cost
from .sampling import Request, Sampling
from .student import turn_seed

CONTEXT_SHARE = 0.4  # of a window's latent frames
_PREFIXES = {"prefix", "random", "independent"}  # `GivenFrames` that teach a model to go on from several frames


def rollout(
    pipeline: LatentVideoPipeline,
    prompts: Sequence[str],
    num_frames: int,
    *,
    clips: Sequence[Tensor] | None = None,
    names: Sequence[object] | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    window: int | None = None,
    context: int | None = None,
    cached: bool | None = None,
    fps: float | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
) -> Iterator[list[Tensor]]:
    """Yields the next frames of each prompt's clip, uint8 [F',H,W,3] on the CPU, until there are `num_frames` of each.

    The windows of all clips are sampled as one pack. What is yielded depends on a clip's own prompt, beginning and
    seed alone; a longer rollout begins with the shorter one.

    Args:
        num_frames: of each clip; with `clips` the new ones alone, which follow those given.
        clips: uint8 [F,H,W,3], to go on from; one a prompt.
        names: of the clips, such as their files, in errors (None: "clip 0" and so on).
        height, width: without clips, their size (None: the model's).
        window: frames of a window, with its context (None: those that the model was trained for).
        context: frames at a window's beginning that are known (None: about 2 latent frames of 5, so that they show
            motion). Both counts are 1 + a multiple of the autoencoder's stride in time.
        cached: which of the two ways; None is cached for the models that can.
        fps: frames a second that the clips are made for, by models that know of it (None: the model's); of `clips`
            their own.
        seed: clip i has seed + i. Its window k, of which 0 is made from the prompt alone, has the noise of
            `window_seed(seed + i, k)`.

    Raises UserError, before anything is made, for lengths and sizes that cannot be, and for a model that cannot do what
    is asked.
    """
    prompts, sampling = list(prompts), sampling or Sampling()
    if num_frames < 1 or not prompts:
        raise UserError(
            f"{counted(num_frames, 'frame')} of {counted(len(prompts), 'prompt')}: at least one of each is needed"
        )
    if clips is not None and len(clips) != len(prompts):
        raise UserError(f"{counted(len(clips), 'clip')} for {counted(len(prompts), 'prompt')}: give one a prompt")
    span = _Span.of(pipeline, window, context)
    size = pipeline.config.height if height is None else height, pipeline.config.width if width is None else width
    for i, clip in enumerate(clips or ()):
        if len(clip) < span.context:
            raise UserError(
                f"{f'clip {i}' if names is None else names[i]} has {counted(len(clip), 'frame')}, and {span.context} "
                "are needed to go on from: give a longer clip, or a context of fewer frames (image to video goes on "
                "from one)"
            )
    sizes = [size] * len(prompts) if clips is None else [tuple(clip.shape[1:3]) for clip in clips]
    grids = [pipeline.latent_grid(span.window, *size) for size in sizes]
    check_cost(pipeline, grids, sampling.large)
    use_cache = cached if cached is not None else _can_cache(pipeline, sampling)
    _check_training(pipeline, sampling, span, use_cache)
    asks = [
        Ask(
            prompt,
            negative_prompt,
            grid,
            seed + i,
            None if clips is None else clips[i][-span.context :].clone(),
            pipeline.rate(fps, grid),
        )
        for i, (prompt, grid) in enumerate(zip(prompts, grids, strict=True))
    ]
    return _cut((_cached if use_cache else _encoded)(pipeline, asks, span, sampling), num_frames)


def window_seed(seed: int, window: int) -> int:
    """The seed of the noise of a window of a rollout: the rollout's own for window 0."""
    return turn_seed(seed, window)


@dataclass(frozen=True)
class _Span:
    """Lengths of a window and of its context: in frames, and as latent frames (f, c)."""

    window: int
    context: int
    f: int
    c: int

    @classmethod
    def of(cls, pipeline: LatentVideoPipeline, window: int | None, context: int | None) -> _Span:
        """Raises UserError."""
        size, stride = (pipeline.config.height, pipeline.config.width), pipeline.codec.temporal_stride
        turn = turn_of(pipeline)
        if window is None:
            window = max(pipeline.config.frames, 1 + (turn or 0) * stride)
        f = pipeline.latent_grid(window, *size)[0]
        if context is None:
            c = min(f - 1, max(2, round(CONTEXT_SHARE * f)))  # one alone shows no motion
            c = c if turn is None else max(1, f - turn)
            context = 1 + stride * (max(1, c) - 1)
        c = pipeline.latent_grid(context, *size)[0]
        if f <= c:
            raise UserError(
                f"a window of {counted(window, 'frame')} must be longer than its context of {context}: ask for a "
                f"window of {context + stride}"
            )
        if turn is not None and f - c != turn:
            raise UserError(
                f"a window of {window} frames with a context of {context} makes {f - c} latent frames at a time, and "
                f"this model was taught to make {turn}: leave context out, or ask for one of {window - turn * stride}"
            )
        return cls(window, context, f, c)


@dataclass(frozen=True)
class Ask:
    """One clip: its window's latent grid, and the end of what it goes on from, uint8 [F,H,W,3], if anything.

    fps: as in a request.
    """

    prompt: str
    negative_prompt: str | None
    grid: Grid
    seed: int
    tail: Tensor | None
    fps: float = 0.0

    def request(self, window: int, frames: int, given: Tensor | None = None) -> Request:
        """Of so many latent frames; those of `given` [C,c,h,w] are known."""
        known = padded = None
        _, h, w = self.grid
        if given is not None:
            known = torch.arange(frames)[:, None, None] < given.shape[1]
            padded = torch.zeros(given.shape[0], frames, h, w)
            padded[:, : given.shape[1]] = given
        return Request(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            grid=(frames, h, w),
            seed=window_seed(self.seed, window),
            fps=self.fps,
            given=padded,
            known=known,
        )


def _can_cache(pipeline: LatentVideoPipeline, sampling: Sampling) -> bool:
    causal = attention_of(pipeline.transformer) == "causal"
    taught = turn_of(pipeline) is not None or pipeline.by_levels(sampling)
    return causal and _streams(pipeline) and taught and pipeline.channel_kind == "none"


def turn_of(pipeline: LatentVideoPipeline) -> int | None:
    """Latent frames that a model was taught to make at a time after its own (self-forcing); None of others."""
    return None if pipeline.student is None else pipeline.student.rollout


def _streams(pipeline: LatentVideoPipeline) -> bool:
    """Whether the autoencoder decodes latents as they come: ours does."""
    return isinstance(pipeline.codec, CausalVideoAutoencoder)


def _check_training(pipeline: LatentVideoPipeline, sampling: Sampling, span: _Span, cached: bool) -> None:
    """Raises UserError where the model cannot go on in this way."""
    given = set(pipeline.config.given)
    if cached and not (attention_of(pipeline.transformer) == "causal" and _streams(pipeline)):
        raise UserError(
            "a cached rollout needs a model of causal attention (this one's is "
            f"{attention_of(pipeline.transformer)}) and an autoencoder that streams "
            f"(this one is {type(pipeline.vae).__name__}): leave cached out"
        )
    if cached and turn_of(pipeline) is None and not pipeline.by_levels(sampling):
        raise UserError(
            "a cached rollout needs a model that was trained with given frames, and condition levels: leave cached out"
        )
    taught = _PREFIXES - {"independent"} if pipeline.told else _PREFIXES  # of those levels channels tell nothing
    if pipeline.as_trained(sampling) and span.c > 1 and not given & taught:
        raise UserError(
            f"this model was trained with {', '.join(sorted(given))} frames given, never with the first {span.c}: ask "
            f"for a context of 1 frame, or condition 'reconstruction', or train it with one of "
            f"{', '.join(sorted(taught))}"
        )


def _cut(windows: Iterator[list[Tensor]], frames: int) -> Iterator[list[Tensor]]:
    """The windows' frames up to a total of so many."""
    for videos in windows:
        videos = [video[:frames] for video in videos]
        frames -= len(videos[0])
        yield videos
        if not frames:
            return


@torch.no_grad()
def _encoded(
    pipeline: LatentVideoPipeline, asks: Sequence[Ask], span: _Span, sampling: Sampling
) -> Iterator[list[Tensor]]:
    """Without end. Each window's context is the end of what was made before, encoded anew."""
    tails = [ask.tail for ask in asks]
    for window in count(1 if tails[0] is not None else 0):
        given = [None] * len(asks) if window == 0 else pipeline.encode(tails, sampling.precision)
        requests = [ask.request(window, span.f, z) for ask, z in zip(asks, given, strict=True)]
        videos = pipeline.decode(pipeline.sample(requests, sampling), sampling.precision)
        if window:
            videos = [video[span.context :] for video in videos]
            joined = (torch.cat([tail, video]) for tail, video in zip(tails, videos, strict=True))
            tails = [both[-span.context :].clone() for both in joined]  # not a view that holds the window
        else:
            tails = [video[-span.context :].clone() for video in videos]
        yield videos


@torch.no_grad()
def _cached(
    pipeline: LatentVideoPipeline, asks: Sequence[Ask], span: _Span, sampling: Sampling
) -> Iterator[list[Tensor]]:
    """Without end. The context is in the caches of the transformer and of the decoder."""
    decoders = [_decoder(pipeline, sampling) for _ in asks]
    past = None
    if asks[0].tail is not None:
        past = pipeline.encode([ask.tail for ask in asks], sampling.precision)
        for decode, z in zip(decoders, past, strict=True):
            decode(z)  # frames that are there already
    first = turn_of(pipeline) or span.f
    for latents in causal_latents(pipeline, asks, first, span.f - span.c, span.c, past, sampling):
        yield [decode(z) for decode, z in zip(decoders, latents, strict=True)]


@torch.no_grad()
def causal_latents(
    pipeline: LatentVideoPipeline,
    asks: Sequence[Ask],
    first: int,
    later: int,
    keep: int | None,
    past: Sequence[Tensor] | None,
    sampling: Sampling,
) -> Iterator[list[Tensor]]:
    """Latents [C,f,h,w] without end, by a causal model: `first` latent frames, then `later` at a time.

    Each is sampled against the cached keys and values of the last `keep` latent frames before it (None: of all). With
    `past`, latents that are there already, all are of `later` frames.
    """
    cache = KeyValueCache()
    for window in count(0 if past is None else 1):
        if past is not None:
            done = [ask.request(window - 1, z.shape[1]) for ask, z in zip(asks, past, strict=True)]
            pipeline.remember(past, done, sampling, cache)
            if keep is not None:
                cache.keep(last=keep)
        requests = [ask.request(window, later if window else first) for ask in asks]
        past = pipeline.sample(requests, sampling, cache)
        yield past


def _decoder(pipeline: LatentVideoPipeline, sampling: Sampling) -> Callable[[Tensor], Tensor]:
    """The next normalised latents [C,f,h,w] of one clip -> their frames uint8 [F,H,W,3] on the CPU."""
    codec = pipeline.codec
    stream = DecodeStream(codec)

    def decode(z: Tensor) -> Tensor:
        if (hook := getattr(pipeline.vae, "_hf_hook", None)) is not None:  # with `enable_model_cpu_offload` it may
            hook.pre_forward(pipeline.vae)  # wait on the CPU, and a stream does not call `forward`
        with pipeline._autocast(sampling.precision):
            return to_uint8(stream.push(codec.denormalise(z[None]))[0]).cpu()

    return decode
