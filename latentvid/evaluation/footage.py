"""Clips cut from any files and folders, for evaluation: no manifest, no captions, nothing random.

Axes: F frames, H W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..data.manifest.samples import Dropped
from ..data.manifest.scan import folders
from ..data.transforms import fit, legal_frames, legal_size
from ..data.video.kinds import IMAGE_ENDINGS, VIDEO_ENDINGS
from ..data.video.reading import probe, read_frames
from ..errors import ClipError, UserError


@dataclass(frozen=True)
class Excerpt:
    """Frames [start, start + frames) of a file, scaled to cover height x width and cut to it from the middle."""

    path: Path
    start: int
    frames: int
    height: int
    width: int
    fps: float

    def read(self) -> Tensor:
        """uint8 [F,H,W,3]; raises ClipError."""
        return fit(read_frames(self.path, self.start, self.frames), self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How clips are cut: at most `frames` frames, at `size` (height, width), or at the nearest legal size to native.

    Lengths are 1 + a multiple of temporal_stride, sides multiples of spatial_stride; a last remainder shorter than
    `frames` is left out, but a file that is shorter as a whole is one shorter clip. Nothing is scaled up.
    smallest: pixels a side, below which a file is not taken.
    """

    frames: int
    size: tuple[int, int] | None
    temporal_stride: int
    spatial_stride: int
    smallest: int = 1

    def __post_init__(self) -> None:
        if self.frames < 1 or legal_frames(self.frames, self.temporal_stride) != self.frames:
            raise UserError(f"{self.frames} frames: this VAE takes 1 + {self.temporal_stride}k frames")
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
        frames = legal_frames(min(info.frames, self.frames), self.temporal_stride)
        starts = range(0, info.frames - frames + 1, frames)
        return [Excerpt(path, start, frames, height, width, info.fps) for start in starts]


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


def cut_files(files: Sequence[Path], cut: Cut, most: int | None) -> tuple[list[Excerpt], list[tuple[Path, str]]]:
    """Clips of the files, at most `most`, and the files that cannot be used, with the reason.

    With `most` every file gives one clip before any gives two, and a file's clips are spread evenly over it.
    """
    of_file, skipped = [], []
    for path in files:
        try:
            of_file.append(cut.excerpts(path))
        except UserError as error:
            skipped.append((path, str(error) if isinstance(error, ClipError) else f"{path}: {error}"))
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
