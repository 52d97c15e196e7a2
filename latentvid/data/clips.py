"""Clips as training sees them: legal windows of a manifest's files, decoded on demand.

Axes: F frames, H height, W width of a window after resizing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ClipError, UserError
from ..rng import generator
from .manifest import Manifest, dropped_by_reason
from .transforms import hflip, legal_frames, legal_size, resize_and_crop
from .video import read_frames

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Transform:
    """What becomes of a file's pixels, as far as shapes go; part of a latent cache's key.

    spatial_stride, temporal_stride: sides are multiples of the one, frames 1 + a multiple of the other.
    max_area: largest height x width in pixels (None: native). max_frames: frames of a window; longer clips are cut
    into windows that follow each other, a last remainder shorter than a window left out.
    crop: side of the random square that is cut from each window, where it is larger (None: whole frames).
    flip: mirror half of the samples (only for captions that do not say left or right).
    """

    spatial_stride: int
    temporal_stride: int
    max_area: int | None = None
    max_frames: int = 17
    crop: int | None = None
    flip: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """Frames [start, start + frames) of a manifest's sample, resized to height x width, then cut to the crop."""

    sample: int
    start: int
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Clip:
    """video: [3,F,H,W] in [-1,1]. index: the window it was read from (another one's if the asked was bad)."""

    video: Tensor
    caption: str
    index: int


class ClipSource:
    """The windows of a manifest; `dropped` lists (path, reason) of what no window could be made of."""

    def __init__(self, manifest: Manifest, transform: Transform) -> None:
        self.name = manifest.source
        self.samples = manifest.samples
        self.transform = transform
        self.dropped = list(manifest.dropped)
        self.windows: list[Window] = []
        for i, sample in enumerate(manifest.samples):
            try:
                height, width = legal_size(
                    sample.height, sample.width, stride=transform.spatial_stride, max_area=transform.max_area
                )
            except UserError:
                self.dropped.append((sample.path, "smaller-than-one-stride"))
                continue
            frames = legal_frames(min(sample.frames, transform.max_frames), transform.temporal_stride)
            self.windows.extend(
                Window(i, start, frames, height, width) for start in range(0, sample.frames - frames + 1, frames)
            )
        if not self.windows:
            raise UserError(f"no clip is left to train on; mend these and try again\n{self.summary()}")
        side = transform.crop
        cut = (lambda n: n) if side is None else (lambda n: min(n, side))
        # (F, H, W) of each window as `load` returns it
        self.shapes = [(w.frames, cut(w.height), cut(w.width)) for w in self.windows]
        self._bad: dict[int, str] = {}  # windows whose file turned out unreadable, and why

    def __len__(self) -> int:
        return len(self.windows)

    def summary(self) -> str:
        """How many windows there are, and by reason what was dropped."""
        head = f"{self.name}: {len(self.windows)} windows of {len(self.samples)} clips and images"
        return "\n".join([head, *dropped_by_reason(self.dropped)])

    def caption(self, index: int) -> str:
        return self.samples[self.windows[index].sample].caption

    def path(self, index: int) -> str:
        return self.samples[self.windows[index].sample].path

    def read(self, index: int) -> Tensor:
        """The whole window's video [3,F,H,W]; raises ClipError."""
        w = self.windows[index]
        return resize_and_crop(read_frames(self.path(index), w.start, w.frames), w.height, w.width)

    def load(self, index: int, seed: int, number: int) -> Clip:
        """The window with the random choices of global sample number `number` made.

        A window whose file cannot be read is replaced by the next one of the same shape, on every rank alike, so that
        the plan stays as it is; it is reported once.
        """
        for step in range(len(self.windows)):
            at = (index + step) % len(self.windows)
            if at in self._bad or self.shapes[at] != self.shapes[index]:
                continue
            try:
                return Clip(self._augment(self.read(at), seed, number), self.caption(at), at)
            except ClipError as error:
                self._bad[at] = error.reason
                logger.warning("skipped, and replaced by another clip (%d so far): %s", len(self._bad), error)
        raise UserError(f"no readable clip of shape {self.shapes[index]} is left; the last fault: {self._bad}")

    def _augment(self, video: Tensor, seed: int, number: int) -> Tensor:
        side = self.transform.crop
        if side is not None:
            free = torch.tensor([max(0, n - side) for n in video.shape[2:]])
            top, left = (torch.rand(2, generator=generator(seed, number, "crop")) * (free + 1)).long().tolist()
            video = video[:, :, top : top + side, left : left + side]
        if self.transform.flip and torch.rand((), generator=generator(seed, number, "flip")) < 0.5:
            video = hflip(video)
        return video.contiguous()
