"""Clips as training sees them: legal windows of manifests' files, decoded on demand.

Axes: F frames, H height, W width of a window after resizing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ClipError, StorageError, UserError
from ..rng import generator
from .manifest.columns import Lookup, Made
from .manifest.identity import identify
from .manifest.manifest import USUAL, Columns, Manifest, read_manifest
from .manifest.samples import Dropped, Samples, dropped_by_reason
from .plan.plan import Draw
from .plan.reads import group, runs
from .quarantine import Quarantine, Watched
from .shared import share_arrays
from .storage import CERTAIN, PATIENCE_S, patiently, read_plainly
from .transforms import from_uint8
from .video.reading import read_windows
from .video.view import View
from .windows import REASONS, Clip, Transform, cut_windows, drawn_caption

logger = logging.getLogger(__name__)

Change = Callable[[Tensor], Tensor]  # uint8 [F,H,W,3] to the like

TIMEOUT_S = 120.0  # a read that takes longer hangs
FRAMES_PER_READ = 256  # decoded in one go at most, where windows are read in the order of their files
MOST_BAD = 100  # files that one load tries in vain before the storage, not the files, must be what is broken


class ClipSource:
    """The windows of one or several manifests.

    windows, shapes: of each window, `Window` and (F, H, W) as `load` returns it. quarantine: the files that failed so
    far; set one with a file to share it between processes and resumes. timeout_s: a file that takes longer to read
    hangs. patience_s: for how long a fault of the storage, which is no file's, is tried again. Raises UserError where
    there is no window.
    """

    def __init__(
        self,
        manifests: Manifest | Sequence[Manifest],
        transform: Transform,
        *,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        manifests = [manifests] if isinstance(manifests, Manifest) else manifests
        self.samples = Samples.joined([manifest.samples for manifest in manifests]).shared()
        self.transform = transform
        self.quarantine = Quarantine()
        self._watched, self.patience_s = Watched(timeout_s), patience_s
        self.windows, shown = cut_windows(self.samples, transform)
        own = shown.frames is self.samples.frames
        self._frames = shown.frames if own else share_arrays({"shown": shown.frames})["shown"]
        side = transform.crop
        cut = (lambda n: n) if side is None else (lambda n: min(n, side))
        shapes = self.windows.sizes.map(lambda size: (size[0], cut(size[1]), cut(size[2])))
        self.shapes = Lookup(shapes.table, share_arrays({"shape": shapes.of})["shape"])
        self._parts = []  # name, number of samples, what is dropped and what else is to be said, of each manifest
        self.unknown_captions = sum(manifest.unknown for manifest in manifests)
        for number, manifest in enumerate(manifests):
            unfit = np.flatnonzero((shown.reason > 0) & (self.samples.source == number))
            rows = ((self._name(i), REASONS[shown.reason[i]]) for i in unfit)
            dropped = Dropped(chain(manifest.dropped, rows))
            self._parts.append((manifest.source, len(manifest.samples), dropped, manifest.notes))
        self.samples.rest()
        if not len(self.windows):
            raise UserError(f"no clip is left to train on; mend these and try again\n{self.summary()}")

    def __len__(self) -> int:
        return len(self.windows)

    def __getstate__(self) -> dict[str, Any]:
        """What loader processes need: of the tables where they lie, and not what was dropped."""
        return {**self.__dict__, "_parts": [(name, samples, Dropped(), ()) for name, samples, *_ in self._parts]}

    @property
    def dropped(self) -> list[tuple[str, str]]:
        """(path, reason) of what no window could be made of."""
        return [row for _, _, dropped, _ in self._parts for row in dropped]

    @property
    def notes(self) -> list[str]:
        """What is to be said of the captions, a line each."""
        return [note for _, _, _, notes in self._parts for note in notes]

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the manifests, in their order."""
        return tuple(str(name) for name, *_ in self._parts)

    @property
    def source_of(self) -> np.ndarray:
        """uint16 [windows]: which manifest each came from."""
        return self.samples.source[self.windows.sample]

    @property
    def is_image(self) -> np.ndarray:
        """bool [windows]"""
        return self.samples.is_image[self.windows.sample]

    @property
    def rates(self) -> np.ndarray:
        """float64 [windows]: frames a second of each; 0 of a single frame, and where no rate is known."""
        rates = self.samples.fps
        if self.transform.fps is not None:
            own, of = np.unique(rates, return_inverse=True)
            rates = np.array([float(self.transform.rate(rate) or rate) for rate in own.tolist()])[of]
        single = self.windows.sizes.map(lambda size: size[0] == 1).array()
        return np.where(single, 0.0, rates[self.windows.sample])

    def rate(self, index: int) -> float:
        """Of one window, as in `rates`."""
        own = float(self.samples.fps[self.windows.sample[index]])
        return 0.0 if self.shapes[index][0] == 1 else float(self.transform.rate(own) or own)

    def seconds(self, index: int) -> float:
        """How long a window lasts; 0 where it has no rate."""
        rate = self.rate(index)
        return self.shapes[index][0] / rate if rate else 0.0

    def view(self, index: int) -> View | None:
        """How a window's frames are taken of its file; None: all of them, by their numbers."""
        sample = self.windows.sample[index]
        rate = self.transform.rate(float(self.samples.fps[sample]))
        return None if rate is None else View(rate, *self.samples.segment(sample), self.transform.fps_slack)

    def per_shape(self, function: Callable[[int, int, int], Any]) -> np.ndarray:
        """[windows, ...]: `function(F, H, W)`, a number or a tuple of them; called once for each distinct shape."""
        return self.shapes.map(lambda shape: function(*shape)).array()

    def summary(self) -> str:
        """How many windows each manifest has, and by reason what was dropped of it."""
        windows = np.bincount(self.source_of, minlength=len(self._parts))
        lines = []
        for count, (name, samples, dropped, notes) in zip(windows, self._parts, strict=True):
            lines += [f"{name}: {count} windows of {samples} clips and images", *dropped_by_reason(dropped)]
            lines += [f"  {note}" for note in notes]
        rates = self.rates.astype(np.float32) if len(self) else np.zeros(0)
        timed = np.flatnonzero(rates)
        if len(timed):
            seconds = self.windows.sizes.map(lambda size: size[0]).array()[timed] / rates[timed]
            lines.append(f"windows of {_range(seconds)} s, at {_range(rates[timed])} frames a second")
        return "\n".join(lines)

    def identity(self, first: Sequence[int] | None = None) -> dict[str, Any]:
        """Which clips and captions these are, wherever they lie. first: only so many of each manifest."""
        samples = self.samples
        used = np.unique(self.windows.sample)
        folders = [os.path.join(folder, "") for folder in samples.folders]
        paths, texts = samples.paths, samples.texts

        def name(n: int) -> str:
            return paths[used[n]].removeprefix(folders[samples.source[used[n]]]) + samples.segment_name(used[n])

        columns = {"names": Made(len(used), name), "captions": Made(len(used), lambda n: texts[used[n]])}
        parts = np.bincount(samples.source[used], minlength=len(samples.folders)).tolist()
        found = identify(columns, parts, first)
        samples.rest()
        return found

    def captions(self, index: int) -> list[str]:
        """All that a window's clip has, one at least."""
        return self.samples.captions(self.windows.sample[index])

    def caption(self, index: int) -> str:
        """The first of them."""
        return self.captions(index)[0]

    def drawn_caption(self, index: int, seed: int, number: int) -> str:
        """The one that is shown with global sample number `number`."""
        captions = self.captions(index)
        return captions[drawn_caption(len(captions), seed, number)]

    def path(self, index: int) -> str:
        return self.samples.path(self.windows.sample[index])

    def _name(self, sample: int) -> str:
        return self.samples.path(sample) + self.samples.segment_name(sample)

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
            return Clip(pixels, self.drawn_caption(at, seed, number), at, replaced=at != index)
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
                if together is None:
                    yield self.load(indices[i], seed, numbers[i])
                else:
                    yield Clip(together[place], self.drawn_caption(indices[i], seed, numbers[i]), indices[i])
        self.samples.rest()

    def _runs(self, indices: Sequence[int], starts: Sequence[int], most: int | None = None) -> Iterator[range]:
        """Places in `indices` that are to be decoded in one go, of at most so many frames."""
        frames = [self.windows[index].frames for index in indices]
        return runs(self.windows.sample[list(indices)], starts, frames, most)

    def _candidates(self, index: int, failed: Container[int]) -> Iterator[int]:
        """The window, then the next ones of its shape, around the end: those of its rate first, which is what the pack
        says of it. Those of files that have failed come last."""
        yield index
        same = np.flatnonzero(self.shapes.of == self.shapes.of[index])
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
        w, path = self.windows[index], self.path(index)
        told = int(self.samples.height[w.sample]), int(self.samples.width[w.sample])
        self.quarantine.check(path)

        def change(place: int, pixels: Tensor) -> Tensor:
            return changes[place](pixels)

        windows = partial(read_windows, told=told, view=self.view(index))
        read = partial(self._watched, windows, path, starts, w.frames, change, (w.height, w.width))
        plainly, known = partial(self._watched, read_plainly), path in self.quarantine.reasons
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
        return error.reason == "missing" and error.path not in self.quarantine.reasons and os.path.exists(error.path)

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


def open_sources(
    paths: Sequence[str | os.PathLike],
    transform: Transform,
    *,
    timeout_s: float = TIMEOUT_S,
    patience_s: float = PATIENCE_S,
    columns: Columns = USUAL,
    check: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> ClipSource:
    """All windows of several manifests, one manifest after another; `source_of` tells which came from which.

    check: what each manifest goes through, such as a look at its captions.
    """
    manifests = [check(read_manifest(path, columns=columns)) for path in paths]
    return ClipSource(manifests, transform, timeout_s=timeout_s, patience_s=patience_s)


def _range(values: np.ndarray) -> str:
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"
