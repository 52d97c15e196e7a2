"""What every score of a set of clips is made of: rows of numbers a clip, and a function of the rows of all clips.

An `Extractor` looks at one clip at a time and gives rows (features of a network, or a figure a frame); a `Score` makes
one number of the rows of a set, with those of real clips beside them where it compares sets. Rows are small, so that
clips need not stay in memory: they are cached on disk, gathered from several processes, and resampled for intervals.

Axes: F frames, H W height and width in pixels, n rows of a clip, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from ..errors import ClipError, UserError


@dataclass(frozen=True)
class Clip:
    """pixels: uint8 [F,H,W,3]. caption: what it was made from or shows. pair: the real clip [F,H,W,3] that it should
    equal, such as the original of a reconstruction. name: what messages call it, such as its path."""

    pixels: Tensor
    fps: float = 8.0
    caption: str | None = None
    pair: Tensor | None = None
    name: str = "clip"


def check_size(clip: Clip, smallest: int, what: str) -> None:
    """Raises ClipError for a clip of which a side is smaller."""
    _, height, width, _ = clip.pixels.shape
    if min(height, width) < smallest:
        said = f"{what} needs {smallest} pixels a side, this clip has {height} x {width}"
        raise ClipError(clip.name, "too-small", said)


def check_motion(clip: Clip) -> None:
    """Raises ClipError for a single image."""
    if len(clip.pixels) < 2:
        raise ClipError(clip.name, "too-short", "motion and flicker need at least 2 frames, leave images out")


class Extractor(Protocol):
    """Rows of one clip."""

    name: str  # of the rows, unique among extractors: "inception", "i3d", "psnr"
    fingerprint: str  # of everything that the rows depend on beside the clip: method, weights, settings; readable
    needs: frozenset[Literal["caption", "pair"]]
    # alike: frozenset[str], of `defaults.COMMON`: what two sets must share for its rows to compare; all if not said

    def __call__(self, clip: Clip) -> Tensor:
        """[n,D], float32 or float64, on the CPU; n is at least 1 and may differ between clips.

        Raises ClipError, with the clip's name, for a clip that it cannot take (too short, too small).
        """


def rows_of(clip: Clip, extractors: Mapping[str, Extractor]) -> dict[str, Tensor | ClipError]:
    """By extractor: the clip's rows, or why it cannot take the clip, or gives no numbers for it.

    Raises UserError where what it gives are no rows.
    """
    found: dict[str, Tensor | ClipError] = {}
    for name, extractor in extractors.items():
        try:
            rows = extractor(clip)
            if rows.ndim != 2 or not rows.numel():
                raise UserError(
                    f"the extractor {name} gives {list(rows.shape)} for {clip.name}: it must give rows [n,D]"
                )
            if not rows.isfinite().all():
                raise ClipError(clip.name, "not-finite", f"{name} gives NaN or infinity for it")
            found[name] = rows
        except ClipError as error:
            found[name] = error
    return found


class Score(Protocol):
    """One number of the rows of a set of clips."""

    name: str  # "fvd", "psnr"
    extractor: str  # whose rows it takes
    compares: Literal["sets", "pairs", "none"]  # with a real set; each clip with its own; clips by themselves
    better: Literal["lower", "higher", "neither"]

    def __call__(self, rows: Sequence[Tensor], real: Sequence[Tensor] | None = None) -> float:
        """Of the rows [n,D] of each clip; `real` is given where `compares` is "sets"."""

    def derivatives(self, rows: Sequence[Tensor], real: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """The derivatives [K] of the score in the counts of the clips where each stands once, and, of a score that
        compares sets, those in the counts of the real ones; float64."""
