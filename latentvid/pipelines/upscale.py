"""Super-resolution in space and time, by models that were shown their clips made smaller (`Role.degrade`).

A long clip goes through in windows, large frames in tiles, which overlap: the noise of a place is the same in all of
them, and their pixels are blended. In memory are a window of the input, one of the output, and what waits to be
blended, however long the clip is.

Axes: F frames, H height, W width of clips uint8 [F,H,W,3]; latents are [C,f,h,w].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..data.degradations import stretched
from ..data.references import shape_of
from ..data.windows import Transform
from ..errors import UserError
from ..packing import patch_stride
from ..references import Role
from ..rng import derived_seed, generator
from .defaults import TOKENS_PER_PACK
from .latent_video import LatentVideoPipeline
from .limit import kinds_of
from .packs import packs, tokens_of
from .sampling import Request, Sampling
from .tiling import joined, starts, stream, windows_of

OVERLAP = 4  # a tile, or a window, has one of so many parts in common with the next one
LEAST = 4  # times that a frame's area may be below the smallest of training


@dataclass(frozen=True)
class SuperResolution:
    """A model and the role in which it sees the small clip. by: of the sides, times: of the frames."""

    pipeline: LatentVideoPipeline
    name: str
    role: Role
    by: int
    times: int

    @classmethod
    def of(cls, pipeline: LatentVideoPipeline, by: int | None = None) -> SuperResolution:
        """by: None is the least that it was trained for. Raises UserError for another, and for a model of no such
        role."""
        found = {name: role for name, role in pipeline.roles.items() if role.degrade}
        if not found:
            raise UserError(
                "the model was not trained to make clips larger: it needs a role of data.references with degrade "
                "(docs/cascades.md)"
            )
        name, role = next(iter(found.items()))
        least, most, times = role.factors
        by = math.ceil(least) if by is None else by
        if not least <= by <= most:
            wanted = f"{least:g}" if least == most else f"{least:g} to {most:g}"
            raise UserError(f"--by {by}: the model was trained to make clips {wanted} times as large: give that")
        return cls(pipeline, name, role, by, times)

    @property
    def stride(self) -> int:
        return self.pipeline.codec.spatial_stride * patch_stride(self.pipeline.transformer.patch)


@dataclass(frozen=True)
class Plan:
    """How a clip goes through a model. All are of the small clip, but for what is made.

    frames, size: the clip's. padded: size in whole units. window: frames of a window, firsts where they begin. tile:
    (H, W), with rows and columns where they begin. made: frames, and size, of what comes out.
    """

    frames: int
    size: tuple[int, int]
    padded: tuple[int, int]
    window: int
    firsts: tuple[int, ...]
    tile: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    made: tuple[int, int, int]

    @classmethod
    def of(cls, model: SuperResolution, frames: int, height: int, width: int, large: bool = False) -> Plan:
        """large: one window and one tile, whatever they cost. Raises UserError for what the model does not make."""
        pipeline, by, times, unit = model.pipeline, model.by, model.times, model.stride
        _check_size(model, frames, height, width)
        padded = tuple(-(-side // unit) * unit for side in (height, width))
        kinds = kinds_of(pipeline)
        largest = max(kinds, key=lambda kind: kind.height * kind.width)
        whole = large or math.prod(padded) * by**2 <= largest.height * largest.width
        tile = tuple(
            side if whole else min(side, max(1, trained // (by * unit)) * unit)
            for side, trained in zip(padded, (largest.height, largest.width), strict=True)
        )
        rows, columns = (
            tuple(unit * n for n in _starts(side // unit, part // unit))
            for side, part in zip(padded, tile, strict=True)
        )
        stride, longest = pipeline.codec.temporal_stride, max(kind.frames for kind in kinds)
        most = frames if large else 1 + max(1, (longest - 1) // (stride * times)) * stride if longest > 1 else 1
        window = 1 + -(-(min(frames, most) - 1) // stride) * stride  # a shorter clip is held at its end
        firsts = tuple(_starts(frames, window))
        made = (frames - 1) * times + 1, height * by, width * by
        return cls(frames, (height, width), padded, window, firsts, tile, rows, columns, made)


def _starts(length: int, size: int) -> list[int]:
    return starts(length, size, min(size - 1, -(-size // OVERLAP)))


def _check_size(model: SuperResolution, frames: int, height: int, width: int) -> None:
    if frames < 2 and model.times > 1:
        raise UserError("a clip of one frame has nothing between its frames: give 2 or more")
    smallest = min(kinds_of(model.pipeline), key=lambda kind: kind.height * kind.width)
    if height * width * model.by**2 * LEAST < smallest.height * smallest.width:
        raise UserError(
            f"the model makes {smallest.height} x {smallest.width} pixels of {smallest.height // model.by} x "
            f"{smallest.width // model.by}, and gets {height} x {width}: give it larger clips, or a model for such "
            "small ones"
        )


def upscaled(
    model: SuperResolution,
    chunks: Iterator[Tensor],
    plan: Plan,
    prompt: str = "",
    *,
    fps: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    tokens_per_pack: int = TOKENS_PER_PACK,
    sampling: Sampling | None = None,
) -> Iterator[Tensor]:
    """Yields the frames of what the model makes of a clip that comes in chunks [F,H,W,3], in order, on the CPU.

    fps: of what is made. Noise is a function of `seed` and of the place in the clip alone; the tiles of a window are
    sampled in packs of `tokens_per_pack`.
    """
    words = {"prompt": prompt, "negative_prompt": negative_prompt}
    make = partial(_window, model, plan, words, fps, seed, tokens_per_pack, sampling or Sampling())
    windows = enumerate(windows_of(chunks, plan.firsts, plan.window))
    firsts = [first * model.times for first in plan.firsts]
    frames, height, width = plan.made
    for piece in stream((make(number, window) for number, window in windows), firsts, frames):
        yield piece[:, :height, :width].contiguous()


@torch.no_grad()
def _window(
    model: SuperResolution,
    plan: Plan,
    words: dict[str, str | None],
    fps: float | None,
    seed: int,
    tokens_per_pack: int,
    sampling: Sampling,
    number: int,
    frames: Tensor,
) -> Tensor:
    """What is made of one window uint8 [n,H,W,3], float [F,H,W,3], in the padded size."""
    pipeline, by, (tall, wide) = model.pipeline, model.by, plan.tile
    small = _padded(frames, plan.padded)
    places = [(row, column) for row in plan.rows for column in plan.columns]
    made = 1 + (plan.window - 1) * model.times
    grid = pipeline.latent_grid(made, tall * by, wide * by)
    shape = shown_shape(model, made, tall * by, wide * by)
    noise = _noise(model, plan, seed, plan.firsts[number] * model.times // pipeline.codec.temporal_stride, grid[0])
    clips = []
    for pack in packs([tokens_of(pipeline, grid)] * len(places), tokens_per_pack):
        shown = [stretched(small[:, y : y + tall, x : x + wide], *shape[1:]) for y, x in (places[i] for i in pack)]
        requests = []
        for i, latent in zip(pack, pipeline.encode(shown, sampling.precision), strict=True):
            y, x = (place * by // pipeline.codec.spatial_stride for place in places[i])
            requests.append(
                Request(
                    **words,
                    grid=grid,
                    seed=derived_seed(seed, number * len(places) + i, "upscale"),
                    fps=pipeline.rate(fps, grid),
                    references={model.name: [latent]},
                    start=noise[:, :, y : y + grid[1], x : x + grid[2]],
                )
            )
        clips += [clip.float() for clip in pipeline.decode(pipeline.sample(requests, sampling), sampling.precision)]
    width = len(plan.columns)
    rows = [joined(clips[i : i + width], [by * x for x in plan.columns], 2) for i in range(0, len(clips), width)]
    return joined(rows, [by * y for y in plan.rows], 1)


def shown_shape(model: SuperResolution, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """In which the small clip is shown beside one of this size, as in training."""
    transform = Transform(
        spatial_stride=model.stride, temporal_stride=model.pipeline.codec.temporal_stride, max_frames=frames
    )
    return shape_of(model.role, (frames, height, width), (frames, height, width), transform)


def _noise(model: SuperResolution, plan: Plan, seed: int, first: int, frames: int) -> Tensor:
    """The state at level 1, [C,f,h,w], of so many latent frames of the whole padded picture; each frame's is keyed by
    its number."""
    pipeline = model.pipeline
    size = [side * model.by // pipeline.codec.spatial_stride for side in plan.padded]
    channels = pipeline.transformer.latent_channels
    each = [torch.randn(channels, *size, generator=generator(seed, first + i, "upscale-noise")) for i in range(frames)]
    return pipeline.scheduler.begin(torch.stack(each, 1))


def _padded(frames: Tensor, size: Sequence[int]) -> Tensor:
    """With its last row and column repeated, uint8 [F,H,W,3]."""
    down, right = (want - have for want, have in zip(size, frames.shape[1:3], strict=True))
    if not (down or right):
        return frames
    pictures = nnf.pad(frames.permute(0, 3, 1, 2).float(), (0, right, 0, down), mode="replicate")
    return pictures.permute(0, 2, 3, 1).to(torch.uint8)
