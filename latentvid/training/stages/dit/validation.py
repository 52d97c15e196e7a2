"""The transformer's loss on held-out clips, by noise level.

Axes: C channels, f h w of a latent; S text tokens; N samples of a pack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ....config.prior import Prior
from ....config.schema import DitConfig
from ....data.cache.shards import Encoded, EncodedText
from ....data.clips import ClipSource
from ....data.motion import motion_strength
from ....data.plan.plan import Draw
from ....data.transforms import from_uint8
from ....data.windows import Clip
from ....errors import UserError
from ....packing import Grid, Patch
from ....rng import generator
from ....words import counted
from ...compute import compute_type
from .conditions import ConditionMaker, encoded_texts
from .data import DitPacks
from .known import kept_by
from .pack import DitPack
from .parts import Parts
from .sampled_scores import SampledScores
from .strength import is_measured, tells_motion


class HeldOutLatents(DitPacks):
    """Held-out windows, each once in every bin of noise levels.

    A bin is a part of the noise levels that are trained. Noise and level of a window in a bin are keyed by
    (validation.seed, the window's number, the bin) alone: they are the same at every step, in every run of the same
    held-out data, on any number of processes. Nothing else is random: no caption is dropped, nothing is given but by
    masks of the clips, and the latent is the posterior's mean. An image-to-video model is given the first frame as in
    sampling.

    scores: of clips that the model makes, if any are asked for. figures: what is measured of each window, of which more
    is better where `higher` has it.
    """

    figures: tuple[str, ...] = ("loss", "x_mse")
    higher: tuple[str, ...] = ()

    def __init__(
        self,
        config: DitConfig,
        parts: Parts,
        patch: Patch,
        scores: SampledScores | None,
        conditions: ConditionMaker | None = None,
    ) -> None:
        settings = config.validation
        manifest = settings.manifest if settings.latents is None else None
        run = replace(config.run, seed=settings.seed)
        if config.data.references and settings.latents is not None:
            raise UserError("validation.latents: a cache holds no references: give validation.manifest in its place")
        if tells_motion(config) and config.data.motion_dropout < 1 and settings.latents is not None:
            raise UserError("validation.latents: a cache holds no motion: give validation.manifest in its place")
        shown = {name: replace(column, dropout=0.0) for name, column in config.data.references.items()}
        data = replace(config.data, latents=settings.latents, manifest=manifest, flip=False, references=shown)
        super().__init__(replace(config, run=run, data=data, prior=Prior()), parts, patch, conditions)
        self.bins, self.scores = settings.bins, scores
        try:
            self.open()
        except UserError as error:
            raise UserError(f"validation: {error}") from error
        if self.cache is None:
            self.cache = self._encoded(settings.seed)
            self.null = self.cache.null()
        count = min(settings.samples, len(self.grids))
        self.windows = torch.linspace(0, len(self.grids) - 1, count).round().long().tolist()
        self.packs = list(self._packed(self.windows, self.bins))

    def _encoded(self, seed: int) -> EncodedClips:
        return EncodedClips(self.source, self.parts, seed, self.conditions, is_measured(self.config))

    def _packed(self, windows: Sequence[int], bins: int) -> Iterator[list[Draw]]:
        """Every window in each of the first so many bins, in packs of at most `data.tokens_per_pack` tokens."""
        pack, tokens = [], 0
        order = sorted(windows, key=lambda i: self.grids[i])
        for index in order:
            size = self.clips_each * self.shapes[index].tokens
            for number in range(index * self.bins, index * self.bins + bins):
                if pack and tokens + size > self.config.data.tokens_per_pack:
                    yield pack
                    pack, tokens = [], 0
                pack.append(Draw(number, index))
                tokens += size
        yield pack

    def _noise_levels(self, draw: Draw, grid: Grid) -> Tensor:
        place = 1.0 - torch.rand(1, generator=generator(self.config.run.seed, draw.number, "timestep"))  # in (0,1]
        low, high = self.levels
        level = low + (high - low) * (draw.number % self.bins + place) / self.bins
        return self.scheduler.path.snap(level).expand(grid[0])

    @property
    def levels(self) -> tuple[float, float]:
        """Those that are trained, cut into the bins; of the path edm, from `sigma_min` on."""
        return max(self.config.timesteps.low, self.scheduler.path.last), self.config.timesteps.high

    def _drawn(self, draw: Draw, grid: Grid) -> Tensor:
        return torch.zeros(grid, dtype=torch.bool)

    def _posterior(self, number: int, shape: Sequence[int]) -> Tensor:
        return torch.zeros(shape)

    def _drops(self, draw: Draw) -> bool:
        return False

    def _caption(self, draw: Draw) -> int:
        return 0

    def summary(self) -> str:
        found = (self.source or self.cache).summary()
        return f"held out: {counted(len(self.windows), 'window')} in {self.bins} bins of noise levels\n{found}"

    def higher_is_better(self, figure: str) -> bool:
        of_scores = {} if self.scores is None else self.scores.metrics.scores
        if figure not in self.figures and figure not in of_scores:
            raise UserError(f"validation.best is {figure!r}: one of {', '.join((*self.figures, *of_scores))}")
        return figure in self.higher or (figure in of_scores and of_scores[figure].better == "higher")

    def begin(self, rank: int, world: int) -> None:
        if self.scores is not None:
            self.scores.begin(rank, world)

    @torch.no_grad()
    def measure(self, model: nn.Module, rank: int, world: int) -> Tensor:
        """Sums of the figures over the windows of each bin [figures, bins]."""
        size = 1 if self.sequence is None else self.sequence.size
        ranks = world // size
        sums = torch.zeros(len(self.figures), self.bins, dtype=torch.float64)
        for turn in range(-(-len(self.packs) // ranks)):
            place = turn * ranks + rank // size
            pack = self.prepare(self.make_pack(self.packs[min(place, len(self.packs) - 1)]).to(self.device))
            with compute_type(self.config, self.device):
                found = self.measured(model, pack).double().cpu()
            if place < len(self.packs):
                numbers = torch.tensor(pack.numbers[:: self.clips_each])
                sums.index_add_(1, numbers % self.bins, found)
        return sums

    def measured(self, model: nn.Module, pack: DitPack) -> Tensor:
        """The figures of each sample [figures, N]."""
        return torch.stack(self.errors(model, pack, of_clean=True))

    def record(self, sums: Tensor) -> dict[str, Any]:
        means = sums / len(self.windows)
        low, high = self.levels
        edges = [low + (high - low) * i / self.bins for i in range(self.bins + 1)]
        bins = [
            {"from": low, "to": high, **dict(zip(self.figures, values, strict=True))}
            for low, high, values in zip(edges, edges[1:], means.T.tolist(), strict=False)
        ]
        return {
            **dict(zip(self.figures, means.mean(1).tolist(), strict=True)),
            "bins": bins,
            "samples": len(self.windows),
        }

    def score(self, model: nn.Module, rank: int, world: int) -> dict[str, dict[str, Any]]:
        return {} if self.scores is None else self.scores.measure(model, rank, world)


class EncodedClips:
    """Windows of clips as a latent cache gives them; each is encoded when it is first asked for, and kept."""

    def __init__(
        self,
        source: ClipSource,
        parts: Parts,
        seed: int,
        conditions: ConditionMaker | None,
        measures: bool = False,
    ) -> None:
        """measures: the motion strength of each."""
        self.measures = measures
        self.vae, self.text, self.image = parts.vae, parts.text, parts.image
        self.source, self.seed, self.conditions = source, seed, conditions
        self._entries: dict[int, Encoded] = {}
        if conditions is not None:
            conditions.hold_out(parts.image)

    def summary(self) -> str:
        return self.source.summary()

    def rate(self, i: int) -> float:
        return self.source.rate(i)

    @torch.no_grad()
    def load(self, i: int, caption: int = 0) -> Encoded:
        """Entry i, with its first caption, which is the one that is asked for."""
        if i not in self._entries:
            self._entries[i] = self._encode(self.source.load(i, self.seed, i))
        return self._entries[i]

    def _encode(self, clip: Clip) -> Encoded:
        mean = self._mean(clip.video)
        words = encoded_texts(self.text, [self.source.caption(clip.index)], torch.float32)[0]
        image = picture = None
        if self.conditions is not None:
            image = self.conditions.image_of(self.vae, clip.video, self.seed, clip.index)
            picture = self.conditions.pictures_of(self.image, clip.pixels)
        of_text = words.states, words.pooled, words.second
        shown = tuple(map(self._mean, map(from_uint8, clip.references)))
        known = kept_by(clip.masks, len(clip.pixels), self.vae.temporal_stride, self.vae.spatial_stride)
        motion = motion_strength(clip.pixels, self.source.rate(clip.index)) if self.measures else math.nan
        return Encoded(mean, torch.zeros_like(mean), *of_text, image, shown, known, motion, picture)

    def _mean(self, video: Tensor) -> Tensor:
        """[3,F,H,W] -> the posterior's mean [C,f,h,w], normalised."""
        posterior = self.vae.encode(video[None].to(self.vae.device, self.vae.dtype)).latent_dist
        return self.vae.normalise(posterior.mean.float())[0].cpu()

    def null(self) -> EncodedText:
        return encoded_texts(self.text, [""], torch.float32)[0]
