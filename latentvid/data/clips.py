"""Clips as training sees them, decoded on demand.

Axes: F frames, H height, W width of a window after resizing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ..errors import ClipError, StorageError, UserError
from ..references import ReferenceColumn
from ..rng import generator
from .access.files import exists
from .clip_table import ClipTable
from .degradations import degraded
from .manifest.columns import paired
from .manifest.manifest import USUAL, Columns, Manifest, read_manifest
from .motion import motion_column
from .plan.plan import Draw
from .plan.reads import group, runs
from .quarantine import Quarantine, Watched
from .references import Computed, Reading
from .shared import share_arrays
from .signals import signal_of
from .storage import CERTAIN, PATIENCE_S, patiently, read_plainly
from .transforms import fit, from_uint8
from .video.reading import read_windows
from .windows import Clip, Transform

logger = logging.getLogger(__name__)

Change = Callable[[Tensor], Tensor]  # uint8 [F,H,W,3] to the like
Beside = tuple[Sequence[Tensor], Sequence[Tensor]]  # uint8 [F,H,W,3] each: a clip's references, and its masks

TIMEOUT_S = 120.0  # a read that takes longer hangs
FRAMES_PER_READ = 256  # decoded in one go at most, where windows are read in the order of their files
MOST_BAD = 100  # files that one load tries in vain before the storage, not the files, must be what is broken


class ClipSource(ClipTable):
    """The clips of one or several manifests, read as training sees them.

    quarantine: the files that failed so far; set one with a file to share it between processes and resumes. timeout_s:
    a file that takes longer to read hangs. patience_s: for how long a fault of the storage, which is no file's, is
    tried again. Raises UserError where there is no window.
    """

    def __init__(
        self,
        manifests: Manifest | Sequence[Manifest],
        transform: Transform,
        *,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        roles: Mapping[str, ReferenceColumn] | None = None,
    ) -> None:
        super().__init__(manifests, transform, roles)
        self.quarantine = Quarantine()
        self._watched, self.patience_s = Watched(timeout_s), patience_s

    def reads(self, tokens: np.ndarray, *, frames: int, most_tokens: int) -> np.ndarray:
        """int64 [windows]: the windows of one number are to be read together, for `Plan`.

        They follow each other in a file, have at most so many frames and `tokens` (of each window) together, and are
        as many as that allows, the reads of a file alike in size; a window that has more by itself is read alone.
        """
        lengths = self.windows.sizes.map(lambda size: size[0]).array()
        return group(self.windows.sample, np.minimum(frames // lengths, most_tokens // np.asarray(tokens)))

    def read(self, index: int) -> Tensor:
        """The whole window's video [3,F,H,W] as it lies in the manifest's tiling; raises ClipError."""
        return from_uint8(self._read(index, self.windows[index].start))

    def read_each(self, indices: Sequence[int]) -> Iterator[Tensor | ClipError]:
        """`read` of each, or what it raises; windows that follow each other in a file are decoded in one go."""
        starts = [self.windows[index].start for index in indices]
        for run in self._runs(indices, starts, FRAMES_PER_READ):
            together = self._read_together([indices[i] for i in run], [starts[i] for i in run])
            for place, i in enumerate(run):
                try:
                    yield self.read(indices[i]) if together is None else from_uint8(together[place])
                except ClipError as error:
                    yield error

    def start(self, index: int, seed: int, number: int) -> int:
        """First frame that `load` reads: the window moves by whole frames within what its clip has beyond its
        windows."""
        first = self.windows[index].start
        room = int(self._frames[self.windows.sample[index]]) % self.shapes[index][0]
        return first + int(torch.randint(room + 1, (), generator=generator(seed, number, "window")))

    def load(self, index: int, seed: int, number: int) -> Clip:
        """The window with the random choices of global sample number `number` made: its shift, crop and flip.

        A window that cannot be read is replaced by the next one of the same shape, preferably of another file, on
        every rank alike, so that the plan stays as it is. The file is at fault, is reported once and goes into
        quarantine, when the replacement can be read: where nothing can, the storage is what is broken. Raises UserError
        where no clip of the shape is left, or so many files in a row fail; StorageError where the storage does not
        answer.
        """
        return patiently(partial(self._load, index, seed, number), self.path(index), self.patience_s)

    def _load(self, index: int, seed: int, number: int) -> Clip:
        failed: dict[int, ClipError] = {}
        for at in self._candidates(index, failed):
            change = partial(self.transform.augment, seed, number)
            try:
                pixels = self._decode(at, [self.start(at, seed, number)], [change], believed=bool(failed))[0]
                shown = self._shown(at, seed, number, pixels, believed=bool(failed))
            except ClipError as error:
                failed[self.windows.sample[at]] = error
                if error.reason not in CERTAIN and sum(e.reason not in CERTAIN for e in failed.values()) == MOST_BAD:
                    why = f"{MOST_BAD} files in a row cannot be read: is their storage there? {error}"
                    raise StorageError(self.path(index), why) from None
                continue
            if any(self._came_back(error) for error in failed.values()):
                return self._load(index, seed, number)
            for error in failed.values():
                self._set_aside(error)
            return Clip(pixels, self.drawn_caption(at, seed, number), at, at != index, *shown)
        faults = "; ".join(str(error) for error in [*failed.values()][:3])
        raise UserError(f"no readable clip of shape {self.shapes[index]} is left: {faults}")

    def load_each(self, draws: Sequence[Draw], seed: int) -> Iterator[Clip]:
        """`load` of each draw; windows that follow each other in a file and in `draws` are decoded in one go."""
        indices, numbers = [draw.index for draw in draws], [draw.number for draw in draws]
        starts = [self.start(index, seed, number) for number, index in draws]
        for run in self._runs(indices, starts):
            changes = [partial(self.transform.augment, seed, numbers[i]) for i in run]
            together = self._read_together([indices[i] for i in run], [starts[i] for i in run], changes)
            for place, i in enumerate(run):
                pixels = None if together is None else together[place]
                shown = None if pixels is None else self._shown_or_none(indices[i], seed, numbers[i], pixels)
                if shown is None:
                    yield self.load(indices[i], seed, numbers[i])
                    continue
                yield Clip(pixels, self.drawn_caption(indices[i], seed, numbers[i]), indices[i], False, *shown)
        self.samples.rest()
        if self.references is not None:
            self.references.rest()

    def _shown(self, index: int, seed: int, number: int, pixels: Tensor, believed: bool = True) -> Beside:
        """uint8 [F,H,W,3] of each reference that global sample number `number` is shown, whose own are `pixels`, and of
        each mask; raises as `_decode` does."""
        if self.references is None:
            return (), ()
        start, sample = self.start(index, seed, number), int(self.windows.sample[index])
        kept = self.references.kept(index, seed, number)
        read = self.references.readings(sample, index, start, self.view(index), kept)
        change = partial(self.transform.augment, seed, number)
        found: tuple[list[Tensor], list[Tensor]] = [], []
        for one, (_, role) in zip(read, self.references.of(index, kept), strict=True):
            if isinstance(one, Computed):
                found[role.is_mask].append(_computed(one, pixels, seed, number))
            else:
                found[role.is_mask].append(self._decode_file(one, [one.start], [change], believed)[0])
        return tuple(found[0]), tuple(found[1])

    def _shown_or_none(self, index: int, seed: int, number: int, pixels: Tensor) -> Beside | None:
        try:
            return self._shown(index, seed, number, pixels)
        except ClipError:
            return None

    def _runs(self, indices: Sequence[int], starts: Sequence[int], most: int | None = None) -> Iterator[range]:
        """Places in `indices` that are to be decoded in one go, of at most so many frames."""
        frames = [self.windows[index].frames for index in indices]
        return runs(self.windows.sample[list(indices)], starts, frames, most)

    def _candidates(self, index: int, failed: Container[int]) -> Iterator[int]:
        """The window, then the next ones of its shape and its references', around the end: those of its rate first,
        which is what the pack says of it. Those of files that have failed come last."""
        yield index
        alike = self.shapes if self.references is None else paired(self.shapes, self.references.shapes)
        same = np.flatnonzero(alike.of == alike.of[index])
        place = np.searchsorted(same, index)
        order = np.concatenate([same[place + 1 :], same[:place]])
        rates = self.rates
        other = rates[order] != rates[index]
        later = []
        for at in chain(order[~other], order[other]):
            if self.windows.sample[at] in failed:
                later.append(int(at))
            else:
                yield int(at)
        yield from later

    def _decode(
        self, index: int, starts: Sequence[int], changes: Sequence[Change], believed: bool = False
    ) -> list[Tensor]:
        """uint8 [F,H,W,3] for each start, in the file of window `index`, after its change; raises ClipError, whose
        fault is certain, or `believed` at the first try, and StorageError."""
        w = self.windows[index]
        told = int(self.samples.height[w.sample]), int(self.samples.width[w.sample])
        window = Reading(self.path(index), told, self.view(index), w.start, (w.frames, w.height, w.width))
        return self._decode_file(window, starts, changes, believed)

    def _decode_file(
        self, one: Reading, starts: Sequence[int], changes: Sequence[Change], believed: bool
    ) -> list[Tensor]:
        """`_decode` of windows like this one of its file."""
        path, (frames, *size) = one.path, one.shape
        self.quarantine.check(path)

        def change(place: int, pixels: Tensor) -> Tensor:
            return changes[place](pixels)

        windows = partial(read_windows, told=one.told, view=one.view)
        read = partial(self._watched, windows, path, starts, frames, change, tuple(size))
        plainly, known = partial(self._watched, read_plainly), self.quarantine.knows(path)
        return patiently(read, path, self.patience_s, believed=believed or known, plainly=plainly)

    def _read(self, index: int, start: int) -> Tensor:
        """uint8 [F,H,W,3]; a fault puts the file into quarantine."""
        try:
            return self._decode(index, [start], [torch.Tensor.contiguous])[0]
        except ClipError as error:
            self._set_aside(error)
            raise

    def _set_aside(self, error: ClipError) -> None:
        if self.quarantine.add(error):
            logger.warning("cannot be used (%d files so far): %s", len(self.quarantine.reasons), error)

    def _came_back(self, error: ClipError) -> bool:
        """Whether a file that was not there, and is in no quarantine, is there now."""
        return error.reason == "missing" and not self.quarantine.knows(error.path) and exists(error.path)

    def _read_together(
        self, indices: Sequence[int], starts: Sequence[int], changes: Sequence[Change] | None = None
    ) -> list[Tensor] | None:
        """uint8 [F,H,W,3] of each of several windows of a file; None where one is alone, or where they must be read one
        by one: only that tells which of them are at fault."""
        if len(indices) == 1:
            return None
        try:
            return self._decode(indices[0], starts, changes or [torch.Tensor.contiguous] * len(indices), believed=True)
        except ClipError:
            return None


def _computed(one: Computed, pixels: Tensor, seed: int, number: int) -> Tensor:
    """uint8 [F,H,W,3] of a window's own pixels, for global sample number `number`."""
    if one.role.degrade:
        return degraded(pixels, one.role.degrade, one.shape[1:], generator(seed, number, f"degrade/{one.name}"))
    return fit(signal_of(one.role, pixels), *one.shape[1:])


def open_sources(
    paths: Sequence[str | os.PathLike],
    transform: Transform,
    *,
    timeout_s: float = TIMEOUT_S,
    patience_s: float = PATIENCE_S,
    columns: Columns = USUAL,
    check: Callable[[Manifest], Manifest] = lambda manifest: manifest,
    roles: Mapping[str, ReferenceColumn] | None = None,
    motion: str | None = None,
) -> ClipSource:
    """All windows of several manifests, one manifest after another; `source_of` tells which came from which.

    check: what each manifest goes through, such as a look at its captions. roles: of references, in columns of the
    manifests. motion: the column of motion strengths.
    """
    extra = {role.column for role in (roles or {}).values() if role.column is not None}
    extra |= set() if motion is None else {motion}
    manifests = [check(read_manifest(path, columns=columns, extra=extra)) for path in paths]
    source = ClipSource(manifests, transform, timeout_s=timeout_s, patience_s=patience_s, roles=roles)
    if motion is not None:
        source.motion = share_arrays({"motion": motion_column(manifests, motion)})["motion"]
    return source
