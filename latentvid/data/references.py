"""References of clips: which files of a manifest's columns a window is shown beside its own, and in which sizes.

Axes: F frames, H height, W width of what comes out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import UserError
from ..references import Placed, ReferenceColumn
from ..rng import generator
from ..words import counted
from .manifest.columns import Lookup, Made
from .manifest.facts import Memory, look_at_files
from .manifest.manifest import Manifest
from .manifest.samples import Row, Samples, dropped_by_reason
from .shared import share_arrays
from .signals import check_signal
from .transforms import legal_frames, legal_size
from .video.view import View
from .windows import Transform, Windows

RATE = 0.01  # share by which the rates of a clip and of what is aligned with it may differ


class Shown(NamedTuple):
    """A reference as a window is shown it: its role, and frames, height and width in pixels."""

    role: str
    shape: tuple[int, int, int]


class Computed(NamedTuple):
    """A reference that is computed of the window's own pixels (`signals.signal_of`, `degradations.degraded`), in a
    role, and has (F, H, W)."""

    name: str
    role: Placed
    shape: tuple[int, int, int]


class Reading(NamedTuple):
    """What to decode of a file: frames [start, start + F) in `view`, fitted to (H, W). told: its own (H, W)."""

    path: str
    told: tuple[int, int]
    view: View | None
    start: int
    shape: tuple[int, int, int]


class References:
    """Of the windows of a source.

    names: the roles, in the order in which references stand. shapes: what each window is shown, role by role.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        roles: Mapping[str, ReferenceColumn],
        samples: Samples,
        windows: Windows,
        transform: Transform,
    ) -> None:
        """samples: those of the manifests, joined. Raises UserError for a column that no manifest has, for files that
        cannot be used, and for such that do not run along with their clips."""
        self.roles, self.transform = dict(roles), transform
        self.names = tuple(roles)
        for name, role in roles.items():
            if role.signal is not None:
                check_signal(role)
            elif not role.computed and not any(role.column in manifest.extra for manifest in manifests):
                raise UserError(
                    f"data.references.{name}: no manifest has a column `{role.column}`: correct the name, or add it "
                    f"({', '.join(str(manifest.source) for manifest in manifests)})"
                )
        self._files = {
            name: _Files(manifests, name, role.column) for name, role in roles.items() if role.column is not None
        }
        for name in self._files:
            if roles[name].along:
                self._check_along(name, samples)
        self.shapes = self._shapes(samples, windows)

    def _check_along(self, name: str, samples: Samples) -> None:
        """Raises UserError for a clip that is not as long as the one that it belongs to, or of another rate where
        frames are taken by their times."""
        found = self._files[name]
        counts = np.diff(found.first)
        of_clip = np.repeat(np.arange(len(samples)), counts)
        here = found.samples
        clip = here.frames > 1
        if self.roles[name].place == "control":
            if len(other := np.flatnonzero(counts != 1)):
                i = int(other[0])
                raise UserError(
                    f"data.references.{name}: {samples.name(i)} has {counted(counts[i], 'file')} in "
                    f"`{self.roles[name].column}`: "
                    "a ControlNet reads one of each clip: fill the cells, or take such rows out"
                )
            clip |= samples.frames > 1  # of which a picture is no signal
        short = np.flatnonzero(clip & (here.frames < samples.frames[of_clip]))
        if len(short):
            i = int(short[0])
            raise UserError(
                f"data.references.{name}: {here.path(i)} has {counted(here.frames[i], 'frame')}, its clip "
                f"{samples.name(int(of_clip[i]))} has {samples.frames[of_clip[i]]}: what is aligned needs a frame for "
                "each of the clip's, or is one picture"
            )
        if self.transform.fps is None and samples.start is None:
            return
        own = samples.fps[of_clip]
        other = np.flatnonzero(clip & (np.abs(here.fps - own) > RATE * own))
        if len(other):
            i = int(other[0])
            raise UserError(
                f"data.references.{name}: {here.path(i)} has {here.fps[i]:g} frames a second, its clip "
                f"{samples.name(int(of_clip[i]))} {own[i]:g}: frames are taken by their times (data.fps, or segments), "
                "so give both one rate"
            )

    def _shapes(self, samples: Samples, windows: Windows) -> Lookup[tuple[Shown, ...]]:
        table: dict[tuple[Shown, ...], int] = {}
        of = np.zeros(len(windows), np.int32)
        sample, last = windows.sample, None
        for window in range(len(windows)):
            if sample[window] != last:
                last, place = sample[window], None
                shown = self._of_sample(int(last), windows.sizes[window], samples)
                place = table.setdefault(shown, len(table))
            of[window] = place
        return Lookup(table, share_arrays({"references": of})["references"])

    def _of_sample(self, sample: int, size: tuple[int, int, int], samples: Samples) -> tuple[Shown, ...]:
        """size: (F, H, W) of the sample's windows."""
        found = []
        for name, role in self.roles.items():
            if role.computed:
                try:
                    found.append(Shown(name, shape_of(role, size, size, self.transform)))
                except UserError as error:
                    raise UserError(f"data.references.{name}: {samples.name(sample)}: {error}") from None
                continue
            files = self._files[name]
            for i in files.of(sample):
                have = tuple(int(x[i]) for x in (files.samples.frames, files.samples.height, files.samples.width))
                try:
                    found.append(Shown(name, shape_of(role, have, size, self.transform)))
                except UserError as error:
                    raise UserError(f"data.references.{name}: {files.samples.path(i)}: {error}") from None
        return tuple(found)

    def kept(self, window: int, seed: int, number: int) -> tuple[int, ...]:
        """Which of a window's references global sample number `number` is shown: all of a role, or none."""
        shown = self.shapes[window]
        if not shown:
            return ()
        dropout = torch.tensor([role.dropout for role in self.roles.values()])
        drawn = torch.rand(len(dropout), generator=generator(seed, number, "reference-dropout")) >= dropout
        there = dict(zip(self.roles, drawn.tolist(), strict=True))
        return tuple(i for i, (role, _) in enumerate(shown) if there[role])

    def of(self, window: int, kept: Sequence[int] | None = None) -> list[tuple[str, ReferenceColumn]]:
        """Names and roles of these references of a window; None: of all."""
        names = [role for role, _ in self.shapes[window]]
        return [(names[i], self.roles[names[i]]) for i in (range(len(names)) if kept is None else kept)]

    def readings(
        self, sample: int, window: int, start: int, view: View | None, kept: Sequence[int]
    ) -> list[Reading | Computed]:
        """What to decode, or to compute, for a window that begins at frame `start` of its sample, in `view`."""
        places = [(name, i) for name in self.names for i in self._numbers(name, sample)]
        found: list[Reading | Computed] = []
        for n in kept:
            (name, i), (_, shape) = places[n], self.shapes[window][n]
            if self.roles[name].computed:
                found.append(Computed(name, self.roles[name], shape))
                continue
            here = self._files[name].samples
            along = self.roles[name].along and here.frames[i] > 1
            told = int(here.height[i]), int(here.width[i])
            found.append(Reading(here.path(i), told, view if along else None, start if along else 0, shape))
        return found

    def _numbers(self, name: str, sample: int) -> Sequence[int]:
        """Of the role's files those of a sample; of what is computed there is one."""
        return (0,) if self.roles[name].computed else self._files[name].of(sample)

    def texts(self, samples: Sequence[int]) -> Made[str]:
        """The files of each of these samples, as the manifests have them, for `identify`."""

        def text(n: int) -> str:
            return "\n".join(
                f"{name}\t{self._files[name].samples.paths[i]}"
                for name in self._files
                for i in self._files[name].of(int(samples[n]))
            )

        return Made(len(samples), text)

    def summary(self) -> list[str]:
        """How many of each role there are, a line each."""
        lines = []
        for name, role in self.roles.items():
            if role.computed:
                what = role.signal or ", ".join(each.kind for each in role.degrade)
                lines.append(f"  {name}, {role.place}: {what} of each clip")
                continue
            counts = np.diff(self._files[name].first)
            lines.append(f"  {name}, {role.place}: {int(counts.sum())} references of {int((counts > 0).sum())} clips")
        return lines

    def rest(self) -> None:
        for files in self._files.values():
            files.samples.rest()


def shape_of(
    role: Placed, have: tuple[int, int, int], clip: tuple[int, int, int], transform: Transform
) -> tuple[int, int, int]:
    """(F, H, W) in which a file of frames, height and width `have` is shown beside a clip of (F, H, W) `clip`.

    Where the role does not say, one beside has at most the area and frames of `transform`. One that is smaller by
    factors has their share of the clip's sides, in whole strides, of which it has at least one, and of its frames.
    Raises UserError for a file smaller than a stride, and for a clip whose share of frames is no length.
    """
    stride = transform.spatial_stride
    if role.degrade:
        side = role.factors.side
        picture = have[0] == 1 and role.as_tokens  # which stands at the first frame
        frames = 1 if picture else few_frames(clip[0], role.factors.frames, transform.temporal_stride)
        return frames, *(-(-size // (side * stride)) * stride for size in clip[1:])
    if role.along:
        area = role.area(*clip[1:])
        size = clip[1:] if area is None else legal_size(*clip[1:], stride=stride, max_area=area)
        return (1 if have[0] == 1 else clip[0]), *size
    area = transform.max_area if role.max_area is None else role.max_area
    most = transform.max_frames if role.max_frames is None else role.max_frames
    frames = legal_frames(min(have[0], most), transform.temporal_stride)
    return frames, *legal_size(*have[1:], stride=stride, max_area=area)


def few_frames(frames: int, factor: int, temporal_stride: int) -> int:
    """Every so many of a clip's frames, its first one among them. Raises UserError where that is no length that the VAE
    has, or does not end with the clip."""
    few = 1 + (frames - 1) // factor
    if (frames - 1) % factor or (few - 1) % temporal_stride:
        raise UserError(
            f"one of {factor} frames of a clip of {frames}: that must be 1 + a multiple of {temporal_stride}, of "
            f"1 + a multiple of {factor}: take clips of 1 + a multiple of {factor * temporal_stride} frames"
        )
    return few


class _Files:
    """Of one role: the files of sample i are those of the numbers first[i] to first[i + 1]."""

    def __init__(self, manifests: Sequence[Manifest], role: str, column: str) -> None:
        counts: list[int] = []
        parts: list[Samples] = []
        for manifest in manifests:
            cells = manifest.extra.get(column) or [None] * len(manifest.samples)
            paths = [list(_paths(cell, role, manifest, i)) for i, cell in enumerate(cells)]
            counts += map(len, paths)
            if any(paths):
                parts.append(_samples([path for each in paths for path in each], role, manifest))
        if not parts:
            raise UserError(f"data.references.{role}: the column `{column}` is empty in all rows: leave the role out")
        self.first = share_arrays({"first": np.cumsum([0, *counts], dtype=np.int64)})["first"]
        self.samples = Samples.joined(parts).shared()

    def of(self, sample: int) -> range:
        return range(int(self.first[sample]), int(self.first[sample + 1]))


def _paths(cell: Any, role: str, manifest: Manifest, i: int) -> Iterator[str]:
    """Of a row's cell: one path, a list of them, or none. Raises UserError."""
    for path in cell if isinstance(cell, list | tuple) else [cell]:
        if path is None or path == "" or path != path:  # the last: NaN, as tables write what is missing
            continue
        if not isinstance(path, str) or not path.strip():
            raise UserError(
                f"data.references.{role}: {manifest.samples.name(i)}: the column holds {path!r:.40}, no path: give a "
                "path, a list of paths, or nothing"
            )
        yield path


def _samples(paths: Sequence[str], role: str, manifest: Manifest) -> Samples:
    """Facts of the files. Raises UserError where one cannot be used."""
    folder = os.path.dirname(os.path.abspath(str(manifest.source)))
    samples, dropped = Samples.of(folder, lambda: (Row(path) for path in paths))
    look_at_files(samples, dropped, check_files=True, threads=8, memory=Memory(str(manifest.source)))
    if len(dropped):
        reasons = "\n".join(dropped_by_reason(dropped)).replace("  dropped", "  ")
        raise UserError(
            f"data.references.{role}: {counted(len(dropped), 'file')} of {manifest.source} cannot be "
            "used: correct their paths, "
            f"or empty the cells\n{reasons}"
        )
    return samples
