"""Noise conditioning augmentation: references, and given frames, with noise of a level that the model is told (Ho et
al. 2021, Cascaded Diffusion Models, section 4.1; Imagen Video draws it uniformly).

Axes: n tokens of a sample's references, P token features, r their latent frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....config.schema import DitConfig
from ....data.clips import ClipSource
from ....data.plan.plan import Draw
from ....diffusion.path import Path
from ....packing import Reference, Shape
from ....references import Placed
from ....rng import generator
from .low import Low


@dataclass(frozen=True)
class Augmentation:
    """Of the samples of a source. A role's level and noise are keyed by (seed, global sample number, role) alone."""

    config: DitConfig
    source: ClipSource | None
    path: Path

    @property
    def on(self) -> bool:
        """Whether the tokens of some role have noise."""
        return any(role.noise is not None and role.as_tokens for role in self.config.data.references.values())

    @property
    def of_given(self) -> bool:
        """Whether given frames have noise."""
        return self.config.given.noise is not None

    def seen(self, levels: Sequence[Tensor], draws: Sequence[Draw], shapes: Sequence[Shape]) -> Tensor | None:
        """What the model sees of samples whose own latent frames have these levels [f] each; None: that they are 0
        in references."""
        if not (self.on or self.of_given):
            return None
        each = zip(levels, draws, shapes, strict=True)
        return torch.cat([x for level, *sample in each for x in (self.own(level, sample[0]), self.levels(*sample))])

    def own(self, level: Tensor, draw: Draw) -> Tensor:
        """Levels [f] of a sample's own frames, of which those at 0 are given: they have one level together."""
        if not self.of_given or not (level == 0).any():
            return level
        return torch.where(level == 0, self._drawn(self.config.given.noise, draw.number, "given-level"), level)

    def levels(self, draw: Draw, shape: Shape) -> Tensor:
        """[r] of a sample of this shape: one level a role, uniform in its range; 0 of roles without."""
        if not self.on:
            return torch.zeros(shape.frames - shape.grid[0])
        parts = [torch.zeros(0)]
        for (name, role), (f, _, _) in zip(self._roles(draw), shape.grids[1:], strict=True):
            parts.append(self.level(name, role, draw.number).expand(f))
        return torch.cat(parts)

    def level(self, name: str, role: Placed, number: int) -> Tensor:
        if role.noise is None:
            return torch.zeros(())
        return self._drawn(role.noise, number, f"reference-level/{name}")

    def _drawn(self, between: tuple[float, float], number: int, key: str) -> Tensor:
        low, high = between
        place = torch.rand((), generator=generator(self.config.run.seed, number, key))
        level = low + (high - low) * place
        return self.path.snap(level) if high > 0 else level

    def noise(self, draw: Draw, shape: Shape, features: int) -> Tensor:
        """[n,P] of a sample of this shape; 0 of roles without."""
        if not self.on:
            return torch.zeros(shape.tokens - math.prod(shape.grid), features)
        parts, sources = [], {}
        for (name, role), grid in zip(self._roles(draw), shape.grids[1:], strict=True):
            size, key = (math.prod(grid), features), f"reference-noise/{name}"
            source = sources.setdefault(name, generator(self.config.run.seed, draw.number, key))
            parts.append(torch.zeros(size) if role.noise is None else torch.randn(size, generator=source))
        return torch.cat(parts)

    def shown(self, draw: Draw, shape: Shape) -> tuple[Reference, ...]:
        """Of the references of a sample's window, of this shape, those of the roles that are not dropped."""
        if not shape.references:
            return ()
        held = self.source.references
        kept = held.kept(draw.index, self.config.run.seed, draw.number)
        places = [i for i, (_, role) in enumerate(held.of(draw.index)) if role.as_tokens]
        return tuple(reference for i, reference in zip(places, shape.references, strict=True) if i in kept)

    def parted(
        self, draw: Draw, shown: Sequence[Tensor], latent: Callable[[Tensor], Sequence[int]]
    ) -> tuple[list[Tensor], Low | None]:
        """Of what a sample is shown but for masks: what has tokens, or is a branch's signal; and what it sees by
        channels, with its noise. latent: the shape [C,f,h,w] of the latent of one."""
        if not shown:
            return [], None
        others, low = [], None
        for each, (name, role) in zip(shown, self._kept(draw, lambda role: not role.is_mask), strict=True):
            if not role.by_channels:
                others.append(each)
                continue
            noise, key = torch.zeros(latent(each)), f"reference-noise/{name}"
            if role.noise is not None:
                noise.normal_(generator=generator(self.config.run.seed, draw.number, key))
            low = Low(each, self.level(name, role, draw.number), noise)
        return others, low

    def _kept(self, draw: Draw, wanted: Callable[[Placed], bool]) -> list[tuple[str, Placed]]:
        """Of each reference that the sample is shown, of the roles that are wanted, in their order."""
        held = self.source.references
        kept = held.kept(draw.index, self.config.run.seed, draw.number)
        return [(name, role) for name, role in held.of(draw.index, kept) if wanted(role)]

    def _roles(self, draw: Draw) -> list[tuple[str, Placed]]:
        """Of each that the sample is shown as tokens."""
        return self._kept(draw, lambda role: role.as_tokens)
