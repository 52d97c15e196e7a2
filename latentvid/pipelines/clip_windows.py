"""Clips of any length and size through a task that makes clips of others: window by window.

Windows overlap. What one made of the frames that it shares with the next is given to that (`Window.begun`), so that it
goes on from it, and both are blended. In memory are a window of the clip and one of what is made, however long it is.

Axes: F frames, H height, W width of clips uint8 [F,H,W,3]; n frames, h height, w width of a window as the model sees
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..limits import check
from ..rng import derived_seed
from ..words import counted
from .canvas import Canvas
from .defaults import KEYFRAME_WINDOW
from .latent_video import LatentVideoPipeline
from .limit import trained_frames
from .tiling import starts, stream, windows_of

OVERLAP = 4  # a window has about one of so many parts in common with the next one


@dataclass(frozen=True)
class Plan:
    """Windows of `size` frames that begin at `firsts`; stride: frames of a latent frame after the first."""

    frames: int
    size: int
    firsts: tuple[int, ...]
    stride: int

    @classmethod
    def of(cls, pipeline: LatentVideoPipeline, frames: int, *, large: bool = False, window: int | None = None) -> Plan:
        """Of a clip of so many frames. window: frames of one, None: as the model was trained; `large`: all are one."""
        stride = pipeline.codec.temporal_stride
        most = frames if large else trained_frames(pipeline) if window is None else check("frames", window)
        most = most if most >= frames else 1 + (most - 1) // stride * stride
        size = min(frames, most)
        shared = 0 if size == 1 else min(size - 1, 1 + round((size - 1) / OVERLAP / stride) * stride)
        return cls(frames, size, tuple(starts(frames, size, shared)), stride)

    @classmethod
    def side_by_side(cls, frames: int, window: int | None = None) -> Plan:
        """Without frames in common, for what makes pictures and takes care of what joins them; the last window is as
        long as the others. window: frames of one at most; None: `KEYFRAME_WINDOW`."""
        most = KEYFRAME_WINDOW if window is None else check("frames", window)
        size = -(-frames // -(-frames // most))
        return cls(frames, size, tuple(range(0, frames, size)), 1)

    def shared(self, number: int) -> int:
        """Frames of window `number` that the one before has made, as many as whole latent frames stand for."""
        if not number:
            return 0
        common = min(self.firsts[number - 1] + self.size - self.firsts[number], self.size - 1)
        return 0 if common < 1 else 1 + (common - 1) // self.stride * self.stride

    @property
    def said(self) -> str:
        """What is told of it."""
        return f"{counted(self.frames, 'frame')}, in {counted(len(self.firsts), 'window')} of {self.size}"


@dataclass(frozen=True)
class Window:
    """A part of a clip, in the size in which the model works.

    number: of the window, from 0. first: its first frame in the clip. frames: uint8 [n,h,w,3]. mask: bool [n,h,w], True
    where to change; None: everywhere. begun: uint8 [k,h,w,3], what was made of its first k frames, 1 or 1 + a whole
    number of strides, by the window before; None: there is none.
    """

    number: int
    first: int
    frames: Tensor
    mask: Tensor | None = None
    begun: Tensor | None = None

    @property
    def continued(self) -> Tensor:
        """Its frames, the first of them as they were made."""
        return self.frames if self.begun is None else torch.cat([self.begun, self.frames[len(self.begun) :]])

    def seed(self, seed: int) -> int:
        """Of its noise, which is another one in each."""
        return derived_seed(seed, self.number, "window") if self.number else seed


Make = Callable[[Window], Tensor]  # uint8 [n,h,w,3], what is made of a window


def in_turn(many: Callable[[Iterator[Tensor]], Iterator[Tensor]]) -> Make:
    """Of what makes one window after another, and keeps what it needs of those before: it takes a window's frames, and
    then yields what it made of them."""
    waiting: list[Tensor] = []

    def given() -> Iterator[Tensor]:
        while True:
            yield waiting.pop()

    made = many(given())

    def make(window: Window) -> Tensor:
        waiting.append(window.frames)
        return next(made)

    return make


def made_anew(
    make: Make,
    chunks: Iterator[Tensor],
    plan: Plan,
    canvas: Canvas,
    masks: Iterator[Tensor] | None = None,
    outside: Callable[[Tensor], Tensor] | None = None,
    find: Callable[[Window], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yields what is made of a clip that comes in chunks uint8 [F,H,W,3], in its size, in order, on the CPU.

    masks: of the same frames, in chunks bool [F,H,W], True where to change: elsewhere the clip's own pixels stay.
    outside: what is there in their place, a function of a window's frames uint8 [n,h,w,3]. find: instead of masks,
    what finds that of a window, bool [n,h,w]. A window whose mask is all False is not made.
    """
    pieces = _pieces(make, chunks, plan, canvas, masks, outside, find)
    yield from stream(pieces, plan.firsts, plan.frames)


@torch.no_grad()
def _pieces(
    make: Make,
    chunks: Iterator[Tensor],
    plan: Plan,
    canvas: Canvas,
    masks: Iterator[Tensor] | None,
    outside: Callable[[Tensor], Tensor] | None,
    find: Callable[[Window], Tensor] | None,
) -> Iterator[Tensor]:
    of_masks = None if masks is None else windows_of(masks, plan.firsts, plan.size)
    before = None
    for number, frames in enumerate(windows_of(chunks, plan.firsts, plan.size)):
        mask = None if of_masks is None else next(of_masks)
        common = plan.shared(number)
        begun = None
        if common:
            at = plan.firsts[number] - plan.firsts[number - 1]
            begun = before[at : at + common]
        seen = None if mask is None else canvas.mask_into(mask)
        window = Window(number, plan.firsts[number], canvas.into(frames), seen, begun)
        if find is not None:
            seen = find(window)
            mask, window = canvas.mask_out(seen), replace(window, mask=seen)
        idle = seen is not None and not bool(seen[common:].any())
        before = window.continued if idle else make(window).cpu()
        if before.shape != window.frames.shape:
            raise ValueError(f"of a window {list(window.frames.shape)} a task made {list(before.shape)}")
        whole = canvas.out(before)
        if mask is not None:
            rest = frames.float() if outside is None else canvas.out(outside(window.frames))
            whole = torch.where(mask[..., None], whole, rest)
        if number + 1 < len(plan.firsts):  # no further than the next one goes on from
            whole = whole[: plan.firsts[number + 1] - plan.firsts[number] + plan.shared(number + 1)]
        yield whole
