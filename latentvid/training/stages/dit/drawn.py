"""What is drawn at random of each sample of the transformer's stage.

Axes: R latent frames, f h w of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ....config.schema import DitConfig
from ....data.cache.latents import LatentCaches
from ....data.clips import ClipSource
from ....data.plan.plan import Draw
from ....data.windows import drawn_caption
from ....diffusion.scheduler import LatentVideoScheduler
from ....packing import Grid, Packed, Patch, Shape
from ....rng import generator
from .augmentation import Augmentation
from .known import Known, in_tokens
from .strength import as_told, of_column


class Drawn:
    """All is keyed by `config.run.seed` and the sample's number. fps_dropout: share of the samples whose frame rate the
    model is not told, motion_dropout: whose motion strength. told: it is told what is known by channels, in the place
    of noise levels. of_class: number of the source that is the class clips of a prior."""

    config: DitConfig
    scheduler: LatentVideoScheduler
    cache: LatentCaches | None
    source: ClipSource | None
    shapes: Sequence[Shape]
    patch: Patch
    fps_dropout = 0.0
    motion_dropout = 0.0
    told = False
    of_class: int | None = None

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.config, self.source, self.scheduler.path)

    def _drawn(self, draw: Draw, grid: Grid) -> Tensor:
        """What is known of a latent (f,h,w): bool [f,h,w]."""
        return self.config.given.known(generator(self.config.run.seed, draw.number, "given"), grid)

    def _known_of(self, draws: Sequence[Draw], whole: Packed, masks: Mapping[int, Tensor]) -> Known:
        """masks: what masks leave of the samples of these numbers; of the others it is drawn what is known."""
        grids = [(f, h * self.patch[1], w * self.patch[2]) for f, h, w in whole.grid]
        each = [
            masks[draw.number] if draw.number in masks else self._drawn(draw, grid)
            for draw, grid in zip(draws, grids, strict=True)
        ]
        return Known([in_tokens(known, self.patch) for known in each], whole)

    def _noise_levels(self, draw: Draw, grid: Grid) -> Tensor:
        """Of each latent frame [f] of its own; 0 where it is given, unless the model is told so by channels."""
        seed, frames = self.config.run.seed, grid[0]
        given, independent = self.config.given.draw(generator(seed, draw.number, "given"), frames)
        source = generator(seed, draw.number, "timestep")
        path, count = self.scheduler.path, frames if independent else 1
        level = self.config.timesteps.draw(source, math.prod(grid), count, path)
        levels = path.snap(level).expand(frames)
        return levels if self.told else levels.masked_fill(given, 0.0)

    def _rate(self, draw: Draw) -> float:
        """Frames a second; 0 of a picture, where no rate is known, and where it is dropped."""
        if self.fps_dropout:
            chance = torch.rand((), generator=generator(self.config.run.seed, draw.number, "fps-dropout"))
            if chance < self.fps_dropout:
                return 0.0
        return (self.cache or self.source).rate(draw.index)

    def _strength(self, draw: Draw, known: float) -> float:
        """The motion strength that is told of a sample: NaN where it is dropped, as where it is not known."""
        chance = torch.rand((), generator=generator(self.config.run.seed, draw.number, "motion-dropout"))
        return math.nan if chance < self.motion_dropout else known

    def _motion_of(self, draws: Sequence[Draw], measured: Sequence[float] | None = None) -> Tensor:
        """What the model is told of the motion of these samples [N]; by the manifests' column where nothing was
        measured of their frames."""
        if measured is None:
            has = self.source is not None and self.source.motion is not None
            measured = [of_column(self.source, draw.index) if has else math.nan for draw in draws]
        return as_told([self._strength(draw, own) for draw, own in zip(draws, measured, strict=True)])

    def _by_model(self, draws: Sequence[Draw]) -> Tensor | None:
        """Which samples are class clips whose target is the model's own prediction: bool [N]."""
        if not self.config.prior.by_model or self.of_class is None:
            return None
        return torch.tensor([self._source_of(draw) == self.of_class for draw in draws])

    def _caption(self, draw: Draw) -> int:
        """Which of its captions a sample of a cache is shown with."""
        return drawn_caption(self.cache.captions(draw.index), self.config.run.seed, draw.number)

    def _posterior(self, number: int, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=generator(self.config.run.seed, number, "posterior"))

    def _source_of(self, draw: Draw) -> int:
        return (self.cache or self.source).source(draw.index)

    def _drops(self, draw: Draw) -> bool:
        """Not of a subject beside its class (`prior`): guidance leads away from what is made without a caption, which
        must not become the subject."""
        if self.of_class is not None and self._source_of(draw) != self.of_class:
            return False
        chance = torch.rand((), generator=generator(self.config.run.seed, draw.number, "caption-dropout"))
        return bool(chance < self.config.caption.dropout)
