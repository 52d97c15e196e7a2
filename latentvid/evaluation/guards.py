"""What two sets of clips must have in common for a score to compare them: where they have not, it is refused.

A distance of sets tells any difference of theirs, also one that was made by how the clips were read and not by what
they show. Each difference has an option that brings the sets together, and can be allowed by its name.
Axes: K clips.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .clip_folder import ClipSet, Item
from .footage import NEAR
from .rows import Clip

SHOWN = 3  # files in a message
LUMA = (0.2126, 0.7152, 0.0722)  # of brightness, by red, green and blue (ITU-R BT.709)
STUDIO = (16.0, 235.0)  # levels of black and white in video signals (ITU-R BT.709)
_SLACK = 2.0  # levels that compression goes beyond
_REACH = 10.0  # levels within which a set must come to both ends of STUDIO to be taken for it
_CHANCE = 1e-3  # of a set keeping within STUDIO though it is like the other one


def unlike(clips: ClipSet, real: ClipSet, *, stated: bool) -> dict[str, str]:
    """By the names of `defaults.COMMON`, but for "levels": how the two sets differ, and what to do.

    stated: whether a length of clips was asked for; files of unequal lengths are cut to one only then.
    """
    found = {
        "rate": _rate(clips.items, real.items),
        "size": _size(clips.items, real.items),
        "length": _length(clips.items, real.items, stated),
        "count": _count(len(clips.items), len(real.items)),
        "repeats": _repeats(clips, real),
    }
    return {name: f"{why}, or take them so with --allow {name}" for name, why in found.items() if why is not None}


def _rate(clips: Sequence[Item], real: Sequence[Item]) -> str | None:
    rates = [sorted({item.excerpt.fps for item in items if item.excerpt.frames > 1}) for items in (clips, real)]
    both = rates[0] + rates[1]
    if not both or max(both) - min(both) <= NEAR * max(both):  # images have no rate
        return None
    said = [_span(f"{rate:g}" for rate in each) for each in rates]
    return f"clips are at {said[0]} frames a second and real ones at {said[1]}: give a rate, --fps {min(both):g}"


def _size(clips: Sequence[Item], real: Sequence[Item]) -> str | None:
    sizes = [sorted({(item.excerpt.height, item.excerpt.width) for item in items}) for items in (clips, real)]
    both = sizes[0] + sizes[1]
    if len(set(both)) == 1:
        return None
    said = [_span(f"{height} x {width}" for height, width in each) for each in sizes]
    least = min(height for height, _ in both), min(width for _, width in both)
    return f"clips are of {said[0]} pixels and real ones of {said[1]}: give a size, --size {least[0]} {least[1]}"


def _length(clips: Sequence[Item], real: Sequence[Item], stated: bool) -> str | None:
    lengths = [sorted({item.excerpt.frames for item in items}) for items in (clips, real)]
    both = lengths[0] + lengths[1]
    if len(set(both)) > 1:
        said = [_span(map(str, each)) for each in lengths]
        return (
            f"clips are of {said[0]} frames and real ones of {said[1]}: give a length that all have, "
            f"--frames {min(both)}, or leave shorter files out (--drop-short)"
        )
    whole = [sorted({item.excerpt.of for item in items}) for items in (clips, real)]
    if stated or whole[0] == whole[1]:
        return None
    said = [_span(map(str, each)) for each in whole]
    return (
        f"files of clips have {said[0]} frames and real ones {said[1]}: say how long the pieces are that are compared, "
        f"--frames {both[0]}"
    )


def _count(clips: int, real: int) -> str | None:
    if clips == real:
        return None
    option = "--max-clips" if clips > real else "--max-real"
    return (
        f"{clips} clips and {real} real ones, and distances depend on that: take as many, {option} {min(clips, real)}"
    )


def _repeats(clips: ClipSet, real: ClipSet) -> str | None:
    """Files of equal bytes, in one set or in both; `repeats.py` looks for copies that have others."""
    owners: dict[Path, str] = {}
    for label, items in (("clips", clips.items), ("real", real.items)):
        for path in {item.excerpt.path.resolve() for item in items}:
            if owners.setdefault(path, label) != label:
                return f"{path} is in both sets: give sets that share none"
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(owners):
        if path.is_file():
            by_size[path.stat().st_size].append(path)
    by_content: dict[str, list[Path]] = defaultdict(list)
    for paths in by_size.values():
        if len(paths) > 1:
            for path in paths:
                with path.open("rb") as file:
                    by_content[hashlib.file_digest(file, "blake2b").hexdigest()].append(path)
    groups = [paths for paths in by_content.values() if len(paths) > 1]
    if not groups:
        return None
    copies = sum(len(paths) - 1 for paths in groups)
    where = "within a set" if all(len({owners[path] for path in paths}) == 1 for paths in groups) else "in both sets"
    names = ", ".join(path.name for path in groups[0][:SHOWN])
    return f"{copies} {'copy' if copies == 1 else 'copies'} of files {where} ({names}): remove them"


def _span(values: Iterable[str]) -> str:
    """Of sorted values."""
    values = list(values)
    return "no" if not values else values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"


class LevelRows:
    """One row a clip, float64: its levels of brightness 0..255 that 0.1 % of the pixels are below, and above."""

    name = "levels"
    fingerprint = "levels: brightness that 0.1 % of the pixels are below and above"
    needs: frozenset = frozenset()
    alike: frozenset = frozenset()

    def __call__(self, clip: Clip) -> Tensor:
        weights = torch.tensor(LUMA)
        counts = torch.zeros(256, dtype=torch.int64)
        for frame in clip.pixels.cpu():
            counts += torch.bincount((frame.float() @ weights).round().long().flatten(), minlength=256)[:256]
        below = counts.cumsum(0).double() / counts.sum()
        low, high = int((below > 0.001).nonzero()[0]), int((below >= 0.999).nonzero()[0])
        return torch.tensor([[low, high]], dtype=torch.float64)


def unlike_levels(clips: Sequence[Tensor], real: Sequence[Tensor]) -> str | None:
    """Why the sets were not written in one range of colours, if so; of `LevelRows` [1,2] of each clip.

    A set is taken for video levels shown as they are (black 16, white 235) where all its clips keep within these, some
    come close to both, and chance would hardly do that, were it like the other set; and for 0..1 instead of
    0..255 where it has no brighter level than 1, but the other has.
    """
    if not clips or not real:
        return None
    sets = {"clips": torch.cat(list(clips)), "real clips": torch.cat(list(real))}
    for label, other in (("clips", "real clips"), ("real clips", "clips")):
        low, high = sets[label].T
        if high.max() <= 1 < sets[other][:, 1].max():
            return f"all {label} are black (no level above 1 of 255): write them with colours 0..255, not 0..1"
        within = (low >= STUDIO[0] - _SLACK) & (high <= STUDIO[1] + _SLACK)
        reaches = low.min() <= STUDIO[0] + _REACH and high.max() >= STUDIO[1] - _REACH
        theirs = sets[other]
        beyond = ((theirs[:, 0] < STUDIO[0] - _SLACK) | (theirs[:, 1] > STUDIO[1] + _SLACK)).double().mean()
        if within.all() and reaches and float(1 - beyond) ** len(low) < _CHANCE:
            return (
                f"all {label} keep within the levels {STUDIO[0]:.0f} to {STUDIO[1]:.0f} of 0 to 255 and {other} do "
                "not: the range of their colours was lost, write them again in the full range, or mark the files with "
                "the range that they have, or take them so with --allow levels"
            )
    return None
