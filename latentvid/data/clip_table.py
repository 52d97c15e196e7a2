"""Which clips there are: legal windows of manifests' files, with their sizes, rates and captions. No file is read.

Axes: F frames, H height, W width of a window after resizing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ..errors import UserError
from ..references import ReferenceColumn
from ..words import counted
from .manifest.columns import Lookup, Made
from .manifest.identity import identify
from .manifest.manifest import Manifest
from .manifest.samples import Dropped, Samples, dropped_by_reason
from .references import References
from .shared import share_arrays
from .video.view import View
from .windows import REASONS, Transform, cut_windows, drawn_caption


class ClipTable:
    """The windows of one or several manifests.

    windows, shapes: of each window, `Window` and (F, H, W) as it is loaded. references: what windows are shown beside
    their own, where `roles` ask for it. Raises UserError where there is no window.
    """

    def __init__(
        self,
        manifests: Manifest | Sequence[Manifest],
        transform: Transform,
        roles: Mapping[str, ReferenceColumn] | None = None,
    ) -> None:
        manifests = [manifests] if isinstance(manifests, Manifest) else manifests
        self.samples = Samples.joined([manifest.samples for manifest in manifests]).shared()
        self.transform = transform
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
        self.motion: np.ndarray | None = None  # float32 [samples], of `motion.motion_column` where it was asked for
        self.references: References | None = None
        if not len(self.windows):
            raise UserError(f"no clip is left to train on; mend these and try again\n{self.summary()}")
        if roles:
            self.references = References(manifests, roles, self.samples, self.windows, transform)

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

    def source(self, index: int) -> int:
        """Of one window, as in `source_of`."""
        return int(self.samples.source[self.windows.sample[index]])

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
            lines += [f"{name}: {counted(count, 'window')} of {samples} clips and images", *dropped_by_reason(dropped)]
            lines += [f"  {note}" for note in notes]
        if self.references is not None:
            lines += ["references:", *self.references.summary()]
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
        if self.references is not None:
            columns["references"] = self.references.texts(used)
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


def _range(values: np.ndarray) -> str:
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"
