"""TokenFlow (Geyer et al. 2023): clips edited by a model that knows only pictures.

All frames are inverted, each by itself. Then they are sampled anew together: at each noise level keyframes, one drawn
in each few frames, are edited jointly, and what the network's layers make of them flows to all frames along the nearest
neighbours of the inverted frames' features (`models.token_flow`).

Long clips go window by window. The last frame of a window is a further keyframe of the next one, with the states that
it had: the next window's keyframes attend to it, and its frames take what was made of it.

What is kept of a window: the inverted frames at each noise level, in a file that has no name; the state of all frames;
and of one noise level at a time the features of its keyframes in each layer. Features of all other frames are computed
again in each step.

Axes: F frames of a window, K steps, n tokens of a frame, P token features; latents are [C,1,h,w].
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..diffusion.guidance import Guidance
from ..diffusion.inversion import invert
from ..diffusion.solvers import Predict, solve
from ..errors import UserError
from ..models.token_flow import BLENDS, TokenFlow, between
from ..packing import Packed, patchify, token_grid, unpatchify
from ..rng import derived_seed, generator
from ..words import counted
from .defaults import GUIDED_BELOW, KEYFRAME_EVERY, KEYFRAME_WINDOW, REACH, SOURCE_ATTENTION, STRENGTH, TOKENS_PER_PACK
from .latent_video import LatentVideoPipeline
from .limit import kinds_of
from .sampling import Request, Sampling


def token_flow(
    pipeline: LatentVideoPipeline,
    clip: Tensor,
    source: str,
    target: str,
    strength: float | None = None,
    *,
    window: int = KEYFRAME_WINDOW,
    **how: Any,
) -> Tensor:
    """A clip uint8 [F,H,W,3] as the target prompt says, by windows of so many frames: see `token_flow_windows`."""
    return torch.cat(list(token_flow_windows(pipeline, clip.split(window), source, target, strength, **how)))


def token_flow_windows(
    pipeline: LatentVideoPipeline,
    windows: Iterable[Tensor],
    source: str,
    target: str,
    strength: float | None = None,
    *,
    every: int = KEYFRAME_EVERY,
    blend: str = "sigmoid",
    source_attention: float = SOURCE_ATTENTION,
    reach: int | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampling: Sampling | None = None,
    tokens_per_pass: int = TOKENS_PER_PACK,
) -> Iterator[Tensor]:
    """The windows of a clip, uint8 [F,H,W,3] each and of one size, as the target prompt says, by a model of pictures.

    source: a prompt for the frames as they are. strength: noise level in (0,1] to which they are inverted, without
    guidance; the stronger, the more may change. The target is guided at levels below `GUIDED_BELOW` alone unless the
    guidance has an interval of its own. every: a keyframe is drawn anew at each noise level in each so many frames.
    blend: how what comes from the keyframes before and after a frame is weighed (`models.token_flow.BLENDS`).
    source_attention: share of the steps, the first ones, in which edited keyframes attend as the source's do.
    reach: how many keyframes to each side one attends to, in VideoDiT (None: `REACH`); in U-Nets always all.
    tokens_per_pass: of frames that go through the network together; the keyframes of a window always do.

    Raises UserError for models that are no image models, sizes that the model cannot make, and values out of range.
    """
    check_image_model(pipeline)
    strength = STRENGTH["tokenflow"] if strength is None else strength
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength}: give a noise level above 0, up to 1")
    if every < 1:
        raise UserError(f"a keyframe in every {counted(every, 'frame')}: give a whole number from 1 up")
    if blend not in BLENDS:
        raise UserError(f"blend {blend!r}: one of {', '.join(BLENDS)}")
    if not 0 <= source_attention <= 1:
        raise UserError(f"source_attention {source_attention}: give a share of the steps, 0 to 1")
    if reach is not None and reach < 0:
        raise UserError(f"reach {reach}: give a number of keyframes from 0 up")
    if TokenFlow(pipeline.transformer).reaches:
        reach = REACH if reach is None else reach
    elif reach is not None:
        raise UserError(f"reach {reach}: the keyframes of a U-Net attend to all of them: leave it out")
    sampling = sampling or Sampling()
    sampling = sampling.by_euler("TokenFlow inverts and samples with solver 'euler', not")
    sampling = pipeline.of_changes(sampling, (0.0, GUIDED_BELOW))

    def edited() -> Iterator[Tensor]:
        anchor = None
        for number, clip in enumerate(windows):
            grid = pipeline.latent_grid(1, *clip.shape[1:3])
            words = {"grid": grid, "seed": seed, "level": strength}
            run = _Run(
                pipeline,
                clip,
                Request(prompt=source, **words),
                Request(prompt=target, negative_prompt=negative_prompt, **words),
                sampling,
                max(1, tokens_per_pass // math.prod(token_grid(grid, pipeline.transformer.patch))),
            )
            with torch.no_grad(), pipeline._autocast(sampling.precision):
                own = derived_seed(seed, number, "window") if number else seed
                made, anchor = run.edited(every, blend, source_attention, reach, own, anchor)
            yield made

    return edited()


def check_image_model(pipeline: LatentVideoPipeline) -> None:
    """Raises UserError where the model never saw a picture by itself, or is not one that TokenFlow can act in."""
    TokenFlow(pipeline.transformer)
    if all(kind.frames > 1 for kind in kinds_of(pipeline)):
        longest = max(kind.frames for kind in kinds_of(pipeline))
        raise UserError(
            "TokenFlow edits clips by image models, and this one was trained on clips alone (up to "
            f"{counted(longest, 'frame')}): "
            "give a model of pictures, or take another method"
        )
    if pipeline.transformer.channels:
        raise UserError(
            "TokenFlow edits clips by models of text and pictures, and this one reads further channels: give one "
            "without (model.condition_channels: none), or take another method"
        )
    if pipeline.student is not None:
        raise UserError(
            "TokenFlow finds the noise of frames without guidance, and guides at some levels alone, which this "
            "distilled model cannot: edit with its teacher"
        )


def keyframes(frames: int, every: int, seed: int, step: int) -> Tensor:
    """Numbers of the keyframes of one step, rising: one drawn in each `every` frames, the last of which may be less."""
    source = generator(seed, step, "keyframes")
    starts = range(0, frames, every)
    drawn = [first + int(torch.randint(min(every, frames - first), (), generator=source)) for first in starts]
    return torch.tensor(drawn)


@dataclass(frozen=True)
class Anchor:
    """The frame before a window, at each noise level: as it was inverted, and as it was edited, [K,n,P] each."""

    source: Tensor
    edited: Tensor


@dataclass
class _Run:
    """One window. at_once: frames that go through the network together."""

    pipeline: LatentVideoPipeline
    clip: Tensor
    source: Request
    target: Request
    sampling: Sampling
    at_once: int

    def edited(
        self, every: int, blend: str, source_attention: float, reach: int | None, seed: int, anchor: Anchor | None
    ) -> tuple[Tensor, Anchor]:
        pipeline, count, levels = self.pipeline, len(self.clip), self.levels
        z0 = self.encoded()  # [F n,P]
        device, shape = z0.device, z0.unflatten(0, (count, -1))[0].shape
        with Trajectory(len(levels) - 1, count, shape) as kept:
            self.invert(z0, levels, kept)
            flow, last = TokenFlow(pipeline.transformer), torch.zeros(len(levels) - 1, *shape)
            sources, targets = _Predicts(self, self.source), _Predicts(self, self.target)

            def predict(z: Tensor, t: Tensor) -> Tensor:
                step = int((levels == t[0].cpu()).nonzero()[0])
                frames = z.unflatten(0, (count, -1))  # [F,n,P]
                last[step] = frames[-1]
                parts = torch.arange(count).split(self.at_once)
                keys = keyframes(count, every, seed, step)
                of_keys = kept.at(step, keys), frames[keys.to(device)]
                if anchor is not None:
                    before = anchor.source[step, None], anchor.edited[step, None].to(z)
                    of_keys = tuple(torch.cat(pair) for pair in zip(before, of_keys, strict=True))
                    keys = torch.cat([torch.tensor([-1]), keys])
                with flow.reading_keyframes():
                    sources(of_keys[0], t)
                with flow.joint(len(keys), as_source=step < source_attention * (len(levels) - 1), reach=reach):
                    targets(of_keys[1], t)
                found = []
                for part in parts:
                    where = between(part, keys, blend).to(device)
                    with flow.reading(where):
                        sources(kept.at(step, part), t)
                    with flow.flowing(where):
                        found.append(targets(frames[part.to(device)], t))
                return torch.cat(found)

            z = kept.at(0, torch.arange(count)).flatten(0, 1).to(z0)
            of_all = levels[:, None].expand(-1, count).to(device)
            z = solve(pipeline.scheduler, predict, z, of_all, self.layout(count), progress=pipeline.progress_bar)
            return self.decoded(z), Anchor(kept.at(slice(None), count - 1).clone(), last)

    # --- the autoencoder, some frames at a time ---

    def encoded(self) -> Tensor:
        """Tokens [F n,P] of all frames, each encoded as a picture."""
        parts = self.clip.split(self.at_once)
        latents = [
            z for part in parts for z in self.pipeline.encode([frame[None] for frame in part], self.sampling.precision)
        ]
        return patchify(latents, self.pipeline.transformer.patch)[0].float()

    def decoded(self, z: Tensor) -> Tensor:
        latents = unpatchify(z, self.layout(len(self.clip)), self.pipeline.transformer.patch)
        starts = range(0, len(latents), self.at_once)
        pictures = (self.pipeline.decode(latents[i : i + self.at_once], self.sampling.precision) for i in starts)
        return torch.cat([picture for part in pictures for picture in part])

    # --- passes ---

    def layout(self, frames: int) -> Packed:
        grid = token_grid(self.source.grid, self.pipeline.transformer.patch)
        return Packed.of([grid] * frames).to(self.pipeline._execution_device)

    @cached_property
    def levels(self) -> Tensor:
        """[K+1]."""
        return self.pipeline._prepare([self.source], self.sampling)[0].levels[:, 0].cpu()

    def invert(self, z0: Tensor, levels: Tensor, kept: Trajectory) -> None:
        """Leaves the inverted frames at each level in `kept`."""
        predicts = _Predicts(self, self.source)
        frames = z0.unflatten(0, (len(self.clip), -1))
        for part in torch.arange(len(self.clip)).split(self.at_once):
            of_part = levels[:, None].expand(-1, len(part)).to(z0.device)
            invert(
                self.pipeline.scheduler,
                predicts.flat(len(part)),
                frames[part.to(z0.device)].flatten(0, 1),
                of_part,
                self.layout(len(part)),
                iterations=0,  # as in `edits.edit`
                progress=self.pipeline.progress_bar,
                visit=lambda step, z, part=part: kept.put(step, part, z.unflatten(0, (len(part), -1))),
            )


class _Predicts:
    """What predicts for a request in passes of any number of frames; the prompt is read once for each number."""

    def __init__(self, run: _Run, request: Request) -> None:
        self.run, self.request = run, request
        self.made: dict[int, Predict] = {}

    def flat(self, frames: int) -> Predict:
        if frames not in self.made:
            run = self.run
            how = run.sampling if self.request is run.target else replace(run.sampling, guidance=Guidance())
            self.made[frames] = run.pipeline._prepare([self.request] * frames, how)[1]
        return self.made[frames]

    def __call__(self, frames: Tensor, t: Tensor) -> Tensor:
        """Frames [f,n,P] at the level of t -> the prediction [f n,P]."""
        return self.flat(len(frames))(frames.flatten(0, 1).to(t.device), t[:1].expand(len(frames)))


class Trajectory:
    """Frames [F,n,P] at each of K noise levels, fp32, in a file of the system's temporary folder: pages that are not in
    use need no memory, and the file is gone with it. Raises UserError where there is no room."""

    def __init__(self, steps: int, frames: int, shape: tuple[int, ...]) -> None:
        size = (steps, frames, *shape)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this is
        need = 4 * math.prod(size)
        try:
            os.posix_fallocate(self.file.fileno(), 0, need)  # or writing to a full disk would end the process
        except OSError as error:
            self.file.close()
            raise UserError(
                f"{need / 2**30:,.1f} GiB for the frames at each noise level: {tempfile.gettempdir()}: "
                f"{error.strerror}: set TMPDIR to a folder with room, or give fewer frames or steps"
            ) from None
        self.values = torch.from_numpy(np.memmap(self.file, np.float32, "r+", shape=size))

    def put(self, step: int, frames: Tensor, z: Tensor) -> None:
        self.values[step, frames] = z.float().cpu()

    def at(self, step: int | slice, frames: Tensor | int) -> Tensor:
        return self.values[step, frames]

    def __enter__(self) -> Trajectory:
        return self

    def __exit__(self, *_: object) -> None:
        del self.values
        self.file.close()
