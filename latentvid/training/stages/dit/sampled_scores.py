"""Scores, in training, of clips that the model makes from held-out captions, beside the held-out clips themselves.

Axes: F frames, H W height and width in pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from torch import Tensor, nn

from ....config.schema import DitConfig
from ....data.references import Shown
from ....errors import ClipError, UserError
from ....evaluation.metrics import open_metrics
from ....evaluation.rows import Clip
from ....evaluation.summary import summarise
from ....packing import Patch, patch_size
from ....pipelines.sampling import Sampling
from ....pipelines.tasks import image_to_video
from ...task import shares
from .clips import open_clips
from .looks import of_pictures
from .parts import Parts, compute_dtype, make_pipeline, roles_of

logger = logging.getLogger(__name__)

SEED = 1_000_000  # of the first clip's noise: far from that of the samples that are looked at

Rows = dict[str, list[Tensor]]  # by extractor, of each clip


class SampledScores:
    """`validation.scores` of `validation.clips` clips, evenly spread over the held-out windows that are videos.

    Each is made from its window's caption and references in its window's size, with noise keyed by its place and
    `validation.seed`; by a model that makes clips of pictures alone, from its first frame too.
    Raises UserError where a score is unknown, needs what is not here, or compares a clip with the one it should equal.
    """

    def __init__(self, config: DitConfig, parts: Parts, patch: Patch) -> None:
        self.config, self.parts, self.roles = config, parts, roles_of(config)
        self.settings, data, vae = config.validation, config.data, parts.vae
        try:
            self.metrics = open_metrics(self.settings.scores, self.settings.networks, parts.device)
        except UserError as error:
            raise UserError(f"validation.scores: {error} (the folder of weights is validation.networks)") from error
        if pairs := [name for name, score in self.metrics.scores.items() if score.compares == "pairs"]:
            raise UserError(f"validation.scores: {pairs[0]} compares a clip with the one it should equal: leave it out")
        shown = {name: replace(column, dropout=0.0) for name, column in data.references.items()}
        unflipped = replace(config, data=replace(data, flip=False, references=shown))
        self.source = open_clips(unflipped, parts, [self.settings.manifest], patch, drop_unknown=True)
        videos = np.flatnonzero(~self.source.is_image)
        if len(videos) < 2:
            raise UserError(f"validation.scores need 2 held-out videos or more, and there are {len(videos)}")
        count = min(self.settings.clips, len(videos))
        self.windows = [int(videos[i]) for i in np.linspace(0, len(videos) - 1, count).round().astype(int)]
        shapes = [[self.source.shapes[i], *(shape for _, shape in self._shown(i))] for i in self.windows]
        latents = (sum(math.prod(vae.latent_grid(*shape)) for shape in each) for each in shapes)
        largest = max(latents) / patch_size(patch)
        self.chunk = max(1, int(data.tokens_per_pack // largest))  # clips that are made together
        self.real: Rows | None = None

    def begin(self, rank: int, world: int) -> None:
        """The rows of the held-out clips. Raises UserError for a clip that a score cannot take."""
        if self.real is None:
            self.real = self._shared(rank, world, lambda places: [self._window(i).pixels for i in places])
            for remark in self.metrics.remarks(self.real):
                logger.warning("validation.scores: %s", remark)

    def measure(self, model: nn.Module, rank: int, world: int) -> dict[str, dict[str, Any]]:
        """Each score with its interval and floor, as `summarise` gives it."""
        pipeline = make_pipeline(self.config, self.parts, model)
        sampling = Sampling(precision=compute_dtype(self.config), progress=False, large=True)

        def make(places: Sequence[int]) -> list[Tensor]:
            frames, heights, widths = zip(*(self.source.shapes[self.windows[i]] for i in places), strict=True)
            captions = [self._caption(i) for i in places]
            seed = SEED * (1 + self.settings.seed) + places[0]
            words = {"fps": [self.source.rate(self.windows[i]) or None for i in places], "seed": seed}
            words |= {"references": [self._references(i) for i in places], "sampling": sampling}
            if of_pictures(self.parts.published):
                images = [self._window(i).pixels[0] for i in places]
                return image_to_video(pipeline, images, captions, frames, **words)
            return pipeline(
                captions, num_frames=frames, height=heights, width=widths, **words, output_type="uint8"
            ).frames

        files = [int(self.source.windows.sample[i]) for i in self.windows]
        return summarise(self.metrics.scores, self._shared(rank, world, make), self.real, files=files)

    def _shared(self, rank: int, world: int, make: Callable[[Sequence[int]], list[Tensor]]) -> Rows:
        """Rows of all clips, of which each process makes a run of places that is as long as the others'."""
        found = []
        for places, counts in self._chunks(shares(len(self.windows), rank, world)):
            for i, counted, pixels in zip(places, counts, make(places), strict=True):
                if counted:
                    clip = Clip(pixels, caption=self._caption(i), name=f"the held-out clip {i}")
                    found.append((i, {name: self._rows(name, clip) for name in self.metrics.extractors}))
        rows = dict(gather_object(found))
        return {name: [rows[i][name] for i in sorted(rows)] for name in self.metrics.extractors}

    def _chunks(self, mine: Sequence[tuple[int, bool]]) -> Iterator[tuple[list[int], list[bool]]]:
        """At most `chunk` at once."""
        for start in range(0, len(mine), self.chunk):
            places, counts = zip(*mine[start : start + self.chunk], strict=True)
            yield list(places), list(counts)

    def _rows(self, name: str, clip: Clip) -> Tensor:
        try:
            return self.metrics.extractors[name](clip)
        except ClipError as error:
            raise UserError(f"validation.scores: {error}") from error

    def _window(self, place: int) -> Any:
        return self.source.load(self.windows[place], self.settings.seed, place)

    def _shown(self, window: int) -> tuple[Shown, ...]:
        shown = () if self.source.references is None else self.source.references.shapes[window]
        return tuple(one for one in shown if one.role in self.roles)

    def _references(self, place: int) -> dict[str, list[Tensor]]:
        """Those of the held-out clip, by their roles."""
        found: dict[str, list[Tensor]] = {}
        if shown := self._shown(self.windows[place]):
            for (role, _), pixels in zip(shown, self._window(place).references, strict=True):
                found.setdefault(role, []).append(pixels)
        return found

    def _caption(self, place: int) -> str:
        return self.source.caption(self.windows[place])
