"""Clips, pictures and masks in files that are made anew: how they are read, some frames at a time.

Axes: F frames, H height, W width of clips uint8 [F,H,W,3] in the size of what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..data.transforms import first_frames, fit
from ..data.video.reading import VideoInfo, probe, read_chunks
from ..errors import UserError
from ..limits import check
from .canvas import Canvas, Size
from .clip_windows import Make, Plan, Window, made_anew
from .inputs import footage_size, is_transparent, say_depth
from .latent_video import LatentVideoPipeline
from .sampling import Sampling

CHUNK = 16  # frames that are read at a time


@dataclass(frozen=True)
class Mask:
    """A picture or video, white where a clip is to change; None: what is beyond the clip's edges. grow: pixels by which
    what is white becomes wider on all sides. outside: as in `made_anew`. share: of the clip's pixels that may change.
    find: instead of a file, as in `made_anew`.
    """

    path: Path | None
    grow: int = 0
    outside: Callable[[Tensor], Tensor] | None = None
    share: float = 1.0
    find: Callable[[Window], Tensor] | None = None


@dataclass(frozen=True)
class Source:
    """A clip or picture in a file, of which `frames` are taken, at `fps` (of a picture: the model's). canvas.native is
    the size of what is written; `fitted`: frames are scaled and cropped to that first. beyond: pixels that are painted
    above, below, left and right of the picture; None: it is not made larger."""

    path: Path
    frames: int
    fps: float
    canvas: Canvas
    plan: Plan
    fitted: bool = False
    beyond: Sequence[int] | None = None

    @property
    def size(self) -> Size:
        return self.canvas.native

    def seen(self) -> Iterator[Tensor]:
        """Its frames as the model sees them, uint8 [F,h,w,3], some at a time."""
        return map(self.canvas.into, self.chunks())

    def shown(self, made: Iterable[Tensor]) -> Iterator[Tensor]:
        """What the model made, uint8 [F,h,w,3], in its own size, some at a time."""
        for piece in made:
            for part in piece.split(CHUNK):
                yield self.canvas.out(part).round().to(torch.uint8)

    def chunks(self) -> Iterator[Tensor]:
        """Its frames uint8 [F,H,W,3], some at a time; beyond their edges these are repeated."""
        for chunk in self._read(self.path):
            yield chunk if self.beyond is None else self._widened(chunk)

    def _read(self, path: Path) -> Iterator[Tensor]:
        for chunk in first_frames(read_chunks(path, CHUNK, CHUNK, threads=0), self.frames):
            yield self.fit(chunk)

    def fit(self, frames: Tensor) -> Tensor:
        """Frames of its file in the size of what is written."""
        return fit(frames, *self.size) if self.fitted else frames

    def mask_chunks(self, mask: Mask) -> Iterator[Tensor]:
        """Of a mask for it, bool [F,H,W]; that of a picture is of all frames."""
        if mask.path is None:
            yield from self._repeated(self._edges(mask.grow))
            return
        whole = probe(mask.path).frames == 1
        for chunk in self._read(mask.path):
            white = grown(chunk.float().mean(-1) >= 128, mask.grow)
            if whole:
                yield from self._repeated(white)
            else:
                yield white

    def _repeated(self, white: Tensor) -> Iterator[Tensor]:
        """bool [1,H,W] for all frames; some at a time, as sums and copies of all would be held whole."""
        for start in range(0, self.frames, CHUNK):
            yield white.expand(min(CHUNK, self.frames - start), -1, -1)

    def _widened(self, frames: Tensor) -> Tensor:
        top, bottom, left, right = self.beyond
        pictures = nnf.pad(frames.movedim(-1, 1).float(), (left, right, top, bottom), mode="replicate")
        return pictures.movedim(1, -1).to(torch.uint8)

    def _edges(self, grow: int) -> Tensor:
        """bool [1,H,W], True beyond the picture."""
        top, bottom, left, right = self.beyond
        mask = torch.ones(1, *self.size, dtype=torch.bool)
        mask[:, top : self.size[0] - bottom, left : self.size[1] - right] = False
        return grown(mask, grow)


def open_source(
    path: Path,
    pipeline: LatentVideoPipeline,
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    large: bool = False,
    window: int | None = None,
    beyond: Sequence[int] | None = None,
    pictures: bool = False,
    together: int | None = None,
) -> Source:
    """A clip or picture to make anew, in its own size, or scaled and cropped to `height` and `width` where one is
    given.

    frames: so many from the start. window: as in `Plan.of`. beyond: as in `Source`. pictures: a model makes its frames
    as pictures, in windows side by side (`Plan.side_by_side`). together: frames that the model makes at a time, where
    what makes them needs no windows of the clip: it has one. Prints what of its pixels is changed, and how it is cut.
    Raises UserError (ClipError for the file itself).
    """
    info = probe(path)
    count = info.frames if frames is None else min(check("frames", frames), info.frames)
    if together is not None:
        plan = Plan(count, count, (0,), pipeline.codec.temporal_stride)
    elif pictures:
        plan = Plan.side_by_side(count, window)
    else:
        plan = Plan.of(pipeline, count, large=large, window=window)
    fitted = height is not None or width is not None
    if beyond is not None and fitted:
        raise UserError("outpainting wants the clip as it is: leave its height and width out")
    if beyond is not None and not any([check("beyond", each) for each in beyond]):
        raise UserError("outpainting wants the clip, and pixels beyond one of its edges: give a number above 0")
    if fitted:
        canvas = Canvas.exactly(footage_size(path, info, pipeline, height=height, width=width, large=large))
    else:
        top, bottom, left, right = beyond or (0, 0, 0, 0)
        size = info.height + top + bottom, info.width + left + right
        canvas = Canvas.of(pipeline, size, together or (1 if pictures else plan.size), large=large)
        _say(path, canvas)
    say_depth(path)
    if len(plan.firsts) > 1:
        print(f"{path}: {plan.said}", flush=True)
    return Source(path, count, info.fps or pipeline.config.fps, canvas, plan, fitted, beyond)


def _say(path: Path, canvas: Canvas) -> None:
    if is_transparent(path):
        print(f"{path}: its transparent parts are taken as black", flush=True)
    if canvas.scaled:
        native, content = (" x ".join(map(str, size)) for size in (canvas.native, canvas.content))
        print(
            f"{path}: {native} pixels, made in {content}, as the model was trained, and scaled back",
            flush=True,
        )


def open_mask(
    path: Path | None, source: Source, grow: int | None = None, outside: Callable[[Tensor], Tensor] | None = None
) -> Mask:
    """A mask for a source (None: what is beyond its edges); it is read once through, with one chunk in memory.

    Raises UserError where size or length are not those of the clip's file, where it is transparent, and where nothing
    is white.
    """
    if path is not None:
        _check_alike(path, probe(path), source.path, probe(source.path), source.frames)
        if is_transparent(path):
            raise UserError(f"mask {path} is transparent in parts: save it without alpha, white where to repaint")
    mask = Mask(path, check("grow", grow or 0), outside)
    white = total = 0
    for chunk in source.mask_chunks(mask):
        white += int(chunk.count_nonzero())
        total += chunk.numel()
    if not white:
        raise UserError(f"mask {path} is black all over: paint white what is to be made anew")
    return replace(mask, share=white / total)


def _check_alike(path: Path, mask: VideoInfo, of: Path, clip: VideoInfo, taken: int) -> None:
    """taken: frames of the clip, from its start, that are made anew."""
    if (mask.height, mask.width) != (clip.height, clip.width):
        raise UserError(
            f"mask {path} is {mask.height} x {mask.width} pixels, {of} {clip.height} x {clip.width}: "
            "they must be of one size"
        )
    if mask.frames not in (1, clip.frames, taken):
        asked = "" if taken == clip.frames else f" (of which {taken} are asked for)"
        raise UserError(
            f"mask {path} has {mask.frames} frames, {of} {clip.frames}{asked}: give an image, or a frame for each"
        )


def grown(mask: Tensor, by: int) -> Tensor:
    """bool [F,H,W], True also within so many pixels of where it was, along rows and columns."""
    if not by:
        return mask
    wide = nnf.max_pool2d(mask[:, None].float(), 2 * by + 1, stride=1, padding=by)
    return wide[:, 0] > 0


def edited(source: Source, make: Make, mask: Mask | None = None) -> Iterator[Tensor]:
    """`made_anew` of a source, within a mask for it."""
    masks = outside = find = None
    if mask is not None and mask.find is not None:
        outside, find = mask.outside, lambda window: grown(mask.find(window), mask.grow)
    elif mask is not None:
        masks, outside = source.mask_chunks(mask), mask.outside
    return made_anew(make, source.chunks(), source.plan, source.canvas, masks, outside, find)


def quiet(source: Source, sampling: Sampling) -> Sampling:
    """The sampling without a bar of its own, where a bar of frames is shown."""
    return replace(sampling, progress=False) if len(source.plan.firsts) > 1 else sampling
