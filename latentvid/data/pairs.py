"""Pairs of clips of one caption, of which one is preferred: two columns of a manifest, read as one data set.

Both clips of a pair have one length, size and rate, and a window of the one goes with the same window of the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from ..errors import UserError
from .clips import MOST_BAD, PATIENCE_S, TIMEOUT_S, ClipSource
from .manifest.manifest import USUAL, Columns, Manifest, read_manifest
from .manifest.samples import Dropped, Samples
from .plan.plan import Draw
from .quarantine import Quarantine
from .windows import REASONS, Clip, Transform, cut_windows

# why a pair is left out, beside what is wrong with one of its clips
DIFFERING = ("", "pair-of-one-clip", "pair-differs-in-rate", "pair-differs-in-length", "pair-differs-in-size")
CAPTIONS = {"empty-caption", "caption-encoding", "caption-too-long"}  # faults of a row, said once
RATES = 1e-3  # by which the rates of a pair's clips may differ, relative


class PairedClips(ClipSource):
    """The windows of the preferred clips; window i of `rejected` is of the other clip of the same pair.

    Captions are those of the preferred clips' manifests.
    """

    def __init__(
        self,
        preferred: Sequence[Manifest],
        rejected: Sequence[Manifest],
        transform: Transform,
        *,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Raises ValueError where the manifests are not each other's, sample by sample."""
        super().__init__(preferred, transform, timeout_s=timeout_s, patience_s=patience_s)
        self.rejected = ClipSource(rejected, transform, timeout_s=timeout_s, patience_s=patience_s)
        self.rejected.quarantine = self.quarantine
        mine, theirs = self.windows, self.rejected.windows
        if not np.array_equal(mine.sample, theirs.sample) or not np.array_equal(
            self.shapes.array(), self.rejected.shapes.array()
        ):
            raise ValueError("the windows of the preferred clips and of the others do not go together")

    @property
    def quarantine(self) -> Quarantine:
        return self._quarantine

    @quarantine.setter
    def quarantine(self, found: Quarantine) -> None:
        self._quarantine = found
        if "rejected" in self.__dict__:
            self.rejected.quarantine = found

    def summary(self) -> str:
        return f"{super().summary()}\neach is a pair: that window of the preferred clip, and of the other one"

    def identity(self, first: Sequence[int] | None = None) -> dict[str, Any]:
        found = super().identity(first)
        names = self.rejected.identity(first)["prints"]["names"]
        return found | {"prints": found["prints"] | {"rejected": names}}

    def load_pair(self, index: int, seed: int, number: int) -> tuple[Clip, Clip]:
        """The window of both clips of a pair, with the same random choices; of another pair where one of them cannot
        be read (as `load`)."""
        clips = super().load(index, seed, number), self.rejected.load(index, seed, number)
        return self._of_one_pair(*clips, Draw(number, index), seed)

    def load_each(self, draws: Sequence[Draw], seed: int) -> Iterator[Clip]:
        """The clips of pairs. Each draw stands there twice, one after the other: for the preferred and for the other
        clip. Both have the same random choices, and are of another pair where one of them cannot be read."""
        pairs = draws[::2]
        if list(pairs) != list(draws[1::2]):
            raise ValueError("each draw of a pair must stand there twice, one after the other")
        preferred, rejected = super().load_each(pairs, seed), self.rejected.load_each(pairs, seed)
        for draw, one, other in zip(pairs, preferred, rejected, strict=True):
            yield from self._of_one_pair(one, other, draw, seed)

    def _of_one_pair(self, preferred: Clip, rejected: Clip, draw: Draw, seed: int) -> tuple[Clip, Clip]:
        """These, or if they were replaced, those of the first pair after it whose clips both can be read."""
        at = draw.index
        for _ in range(MOST_BAD):
            if preferred.index == rejected.index:
                replaced = preferred.index != draw.index
                preferred = replace(preferred, replaced=replaced)
                return preferred, replace(rejected, replaced=replaced, caption=preferred.caption)
            at = preferred.index if preferred.index != at else rejected.index
            preferred, rejected = (side(at, seed, draw.number) for side in (super().load, self.rejected.load))
        raise UserError(
            f"no pair of shape {self.shapes[draw.index]} is left whose clips can both be read: mend those that "
            "quarantine.jsonl names"
        )


def open_pairs(
    paths: Sequence[str | os.PathLike],
    transform: Transform,
    *,
    rejected: str,
    timeout_s: float = TIMEOUT_S,
    patience_s: float = PATIENCE_S,
    columns: Columns = USUAL,
    check: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> PairedClips:
    """All pairs of several manifests. rejected: the column of the clips that were not preferred. The rest is as in
    `clips.open_sources`. Raises UserError where a manifest has no pair."""
    both = [read_pairs(path, transform, rejected, columns, check) for path in paths]
    preferred, others = zip(*both, strict=True)
    return PairedClips(preferred, others, transform, timeout_s=timeout_s, patience_s=patience_s)


def read_pairs(
    path: str | os.PathLike,
    transform: Transform,
    rejected: str,
    columns: Columns = USUAL,
    check: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> tuple[Manifest, Manifest]:
    """The manifests of the preferred and of the other clips, sample by sample of the same pairs.

    What a table says of frames, rate and size is of the preferred clips: the others are looked at. A segment (`start`,
    `end`) is of both. Pairs that cannot be used are in `dropped` of the first, by reason.
    """
    one = read_manifest(path, columns=columns)
    other = read_manifest(path, columns=Columns(rejected, columns.caption, facts=False))
    faults = [(name, f"rejected-{reason}") for name, reason in other.dropped if reason not in CAPTIONS]
    common = np.intersect1d(one.samples.row, other.samples.row)
    one, other = _of_rows(one, common), _of_rows(other, common)
    reasons = _differing(one.samples, other.samples, transform) if len(common) else []
    faults += [(one.samples.name(i), reason) for i, reason in enumerate(reasons) if reason]
    one = replace(one, dropped=Dropped(chain(one.dropped, faults)))
    kept = np.array([not reason for reason in reasons], bool)
    if not kept.any():
        raise UserError(f"{path} has no pair that can be used; mend these and try again\n{_said(one)}")
    one = check(_where(one, kept))
    return one, _of_rows(other, one.samples.row)


def _said(manifest: Manifest) -> str:
    return "\n".join(manifest.summary().splitlines()[1:])


def _of_rows(manifest: Manifest, rows: np.ndarray) -> Manifest:
    return _where(manifest, np.isin(manifest.samples.row, rows))


def _where(manifest: Manifest, kept: np.ndarray) -> Manifest:
    return replace(manifest, samples=manifest.samples.where(kept))


def _differing(one: Samples, other: Samples, transform: Transform) -> list[str]:
    """Of each pair why it is left out; "" of those that are not."""
    cuts = [_cut(samples, transform) for samples in (one, other)]
    (rates, frames, sizes, unfit), (other_rates, other_frames, other_sizes, other_unfit) = cuts
    found = np.zeros(len(one), np.int64)
    for reason, wrong in (
        ("pair-differs-in-size", (sizes != other_sizes).any(1)),
        ("pair-differs-in-length", frames != other_frames),
        ("pair-differs-in-rate", ~np.isclose(rates, other_rates, rtol=RATES, atol=0)),
        ("pair-of-one-clip", np.array([one.path(i) == other.path(i) for i in range(len(one))])),
    ):
        found[wrong] = DIFFERING.index(reason)
    reasons = [DIFFERING[code] for code in found]
    for code, words in ((other_unfit, "rejected-{}"), (unfit, "{}")):
        for i in np.flatnonzero(code):
            reasons[i] = words.format(REASONS[code[i]])
    return reasons


def _cut(samples: Samples, transform: Transform) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each sample: frames a second, frames that are shown, (frames, height, width) of its windows (0 where it has
    none), and why it has none."""
    windows, shown = cut_windows(samples, transform)
    rates = np.array([float(transform.rate(rate) or rate) for rate in samples.fps.tolist()])
    sizes = np.zeros((len(samples), 3), np.int64)
    if len(windows):
        sizes[windows.sample] = windows.sizes.array()
    return rates, shown.frames, sizes, shown.reason
