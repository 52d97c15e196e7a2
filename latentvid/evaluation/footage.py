"""Clips cut from any files and folders, for evaluation: no manifest, no captions, nothing random.

Axes: F frames, H W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.manifest.samples import Dropped
from ..data.manifest.scan import folders
from ..data.transforms import fit, legal_frames, legal_size
from ..data.video.kinds import IMAGE_ENDINGS, VIDEO_ENDINGS
from ..data.video.reading import VideoInfo, probe, read_frames
from ..data.video.view import View, exact, taken
from ..errors import ClipError, UserError
from ..words import counted

NEAR = 0.01  # of a rate: 23.976 and 24 frames a second are one


@dataclass(frozen=True)
class Excerpt:
    """Every `stride`-th frame from `start` on, `frames` in all, scaled to cover height x width and cut from the middle.

    fps: of the excerpt, 0 of an image. rate: at which the file is read; None: at its own. of: frames that the whole
    file would give at that rate and stride.
    """

    path: Path
    start: int
    frames: int
    height: int
    width: int
    fps: float
    rate: Fraction | None = None
    stride: int = 1
    of: int = 0

    def read(self) -> Tensor:
        """uint8 [F,H,W,3]; raises ClipError."""
        view = None if self.rate is None else View(self.rate)
        frames = read_frames(self.path, self.start, (self.frames - 1) * self.stride + 1, view=view)
        return fit(frames[:: self.stride], self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How clips are cut: at most `frames` frames, at `size` (height, width), or at the nearest legal size to native.

    Lengths are 1 + a multiple of temporal_stride, sides multiples of spatial_stride; a last remainder shorter than
    `frames` is left out, but a file that is shorter as a whole is one shorter clip, or none with `drop_short`. Nothing
    is scaled up. fps: at which files are read (None: each at its own); a slower file is not taken, since its frames
    would be shown twice. stride: every which frame of those is taken. smallest: pixels a side, below which a file is
    not taken.
    """

    frames: int
    size: tuple[int, int] | None
    temporal_stride: int
    spatial_stride: int
    smallest: int = 1
    fps: float | None = None
    stride: int = 1
    drop_short: bool = False

    def __post_init__(self) -> None:
        if self.frames < 1 or legal_frames(self.frames, self.temporal_stride) != self.frames:
            raise UserError(f"{counted(self.frames, 'frame')}: this VAE takes 1 + {self.temporal_stride}k frames")
        if self.size is not None and (min(self.size) < 1 or any(side % self.spatial_stride for side in self.size)):
            raise UserError(
                f"{self.size[0]} x {self.size[1]} pixels: this VAE takes multiples of {self.spatial_stride}"
            )

    def excerpts(self, path: Path) -> list[Excerpt]:
        """All clips of a file. Raises ClipError, and UserError where it is too small."""
        info = probe(path)
        height, width = self.size or legal_size(info.height, info.width, stride=self.spatial_stride, max_area=None)
        if min(height, width) < self.smallest:
            raise UserError(f"{height} x {width} pixels are too few, it takes {self.smallest} a side")
        if info.height < height or info.width < width:
            raise UserError(
                f"{info.height} x {info.width} pixels would be scaled up to {height} x {width}, which would flatter"
            )
        rate, count = self._resampled(info)
        whole = 1 + (count - 1) // self.stride
        frames = legal_frames(min(whole, self.frames), self.temporal_stride)
        if self.drop_short and frames < self.frames:
            raise UserError(f"{whole} frames are fewer than {self.frames}, and short files are left out")
        fps = float(rate or info.fps) / self.stride
        starts = range(0, whole - frames + 1, frames)
        return [
            Excerpt(path, start * self.stride, frames, height, width, fps, rate, self.stride, whole) for start in starts
        ]

    def _resampled(self, info: VideoInfo) -> tuple[Fraction | None, int]:
        """The rate to read at (None: the file's own), and how many frames there are at it."""
        if self.fps is None or not info.fps or abs(info.fps - self.fps) <= NEAR * self.fps:
            return None, info.frames
        if info.fps < self.fps:
            raise UserError(
                f"{counted(info.fps, 'frame')} a second would be shown twice to make {self.fps:g}: give "
                "a lower rate (--fps)"
            )
        rate = exact(self.fps)
        return rate, taken(info.frames, exact(info.fps), rate)


def find_files(inputs: Sequence[Path]) -> list[Path]:
    """The files given, and those in the folders given (recursively, by name) that are videos or images by ending.

    Raises UserError where an input is missing or a folder holds none.
    """
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(_media(path))
            if not inside:
                raise UserError(f"{path} holds no video or image ({', '.join(sorted(VIDEO_ENDINGS | IMAGE_ENDINGS))})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} cannot be found; correct the path")
    return list(dict.fromkeys(found))


def _media(folder: Path) -> Iterator[Path]:
    for place, names in folders(str(folder), Dropped()):
        yield from (Path(place, n) for n in names if Path(n).suffix.lower() in VIDEO_ENDINGS | IMAGE_ENDINGS)


def cut_files(
    files: Sequence[Path], cut: Cut, most: int | None, looked: Callable[[], Any] = lambda: None
) -> tuple[list[Excerpt], list[tuple[Path, str]]]:
    """Clips of the files, at most `most`, and the files that cannot be used, with the reason.

    With `most` every file gives one clip before any gives two, and a file's clips are spread evenly over it. looked: is
    called after each file.
    """
    of_file, skipped = [], []
    for path in files:
        try:
            of_file.append(cut.excerpts(path))
        except UserError as error:
            skipped.append((path, str(error) if isinstance(error, ClipError) else f"{path}: {error}"))
        looked()
    if most is None:
        return [excerpt for excerpts in of_file for excerpt in excerpts], skipped
    shares = _shares([len(excerpts) for excerpts in of_file], most)
    return [
        excerpts[(2 * i + 1) * len(excerpts) // (2 * share)]
        for excerpts, share in zip(of_file, shares, strict=True)
        for i in range(share)
    ], skipped


def _shares(counts: Sequence[int], most: int) -> list[int]:
    """How many of each count are taken, in turns, until `most` are."""
    shares = [0] * len(counts)
    while sum(shares) < min(most, sum(counts)):
        for i, count in enumerate(counts):
            if shares[i] < count and sum(shares) < most:
                shares[i] += 1
    return shares
