"""What is drawn at random of each sample of the transformer's stage.

Axes: R latent frames, f h w of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ....config.schema import DitConfig
from ....data.cache.latents import LatentCaches
from ....data.clips import ClipSource
from ....data.plan.plan import Draw
from ....data.windows import drawn_caption
from ....diffusion.scheduler import LatentVideoScheduler
from ....packing import Grid
from ....rng import generator
from .augmentation import Augmentation


class Drawn:
    """All is keyed by `config.run.seed` and the sample's number. fps_dropout: share of the samples whose frame rate the
    model is not told. told: it is told what is known by channels, in the place of noise levels. of_class: number of the
    source that is the class clips of a prior."""

    config: DitConfig
    scheduler: LatentVideoScheduler
    cache: LatentCaches | None
    source: ClipSource | None
    fps_dropout = 0.0
    told = False
    of_class: int | None = None

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.config, self.source, self.scheduler.path)

    def _drawn(self, draw: Draw, grid: Grid) -> Tensor:
        """What is known of a latent (f,h,w): bool [f,h,w]."""
        return self.config.given.known(generator(self.config.run.seed, draw.number, "given"), grid)

    def _noise_levels(self, draw: Draw, grid: Grid) -> Tensor:
        """Of each latent frame [f] of its own; 0 where it is given, unless the model is told so by channels."""
        seed, frames = self.config.run.seed, grid[0]
        given, independent = self.config.given.draw(generator(seed, draw.number, "given"), frames)
        source = generator(seed, draw.number, "timestep")
        level = self.config.timesteps.draw(source, math.prod(grid), frames if independent else 1)
        levels = self.scheduler.path.snap(level).expand(frames)
        return levels if self.told else levels.masked_fill(given, 0.0)

    def _rate(self, draw: Draw) -> float:
        """Frames a second; 0 of a picture, where no rate is known, and where it is dropped."""
        if self.fps_dropout:
            chance = torch.rand((), generator=generator(self.config.run.seed, draw.number, "fps-dropout"))
            if chance < self.fps_dropout:
                return 0.0
        return (self.cache or self.source).rate(draw.index)

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
