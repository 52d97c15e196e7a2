"""Preference tuning: Diffusion-DPO on pairs of clips, of any backbone, whole or by an adapter.

Axes: N pairs of a pack.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ....config.schema import DitConfig
from ....data.cache.shards import Encoded
from ....data.plan.plan import Draw
from ....models.flops import GridFlops
from ....packing import Grid, Reference
from .pairs import PairPack, PairPacks
from .sampled_scores import SampledScores
from .task import DitTask
from .trained import dropout_of
from .validation import EncodedClips, HeldOutLatents

FIGURES = ("loss", "margin", "accuracy", "error_preferred", "error_rejected")  # as `Preference` has them


class PreferenceTask(PairPacks, DitTask):
    """What is trained is the transformer, on the loss of `diffusion.preference`; the plan's samples are pairs.

    The reference is `before`, the model that the run begins with.
    """

    def __init__(self, config: DitConfig, device: torch.device, data: bool = True) -> None:
        super().__init__(config, device, data)
        if not data:
            return
        self.tokens, self.costs = self.clips_each * self.tokens, self.clips_each * self.costs

    def grid_flops(self, grid: Grid, references: Sequence[Reference] = ()) -> GridFlops:
        one = super().grid_flops(grid, references)
        return GridFlops(self.clips_each * one.model, self.clips_each * one.encode)

    def blank_pack(self, grids: Sequence[Grid], references: Sequence[Sequence[Reference]] = ()) -> PairPack:
        twice = ([each for each in of_pairs for _ in range(self.clips_each)] for of_pairs in (grids, references))
        return PairPack.of(super().blank_pack(*twice))

    def loss(self, model: nn.Module, pack: PairPack, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        with dropout_of(self.config, self.model, pack.numbers[0] if pack.numbers else 0):
            found = self.preferred(model, pack)
        return found.loss, {name: getattr(found, name) for name in FIGURES[1:]}

    def held_out(self) -> HeldOutPairs | None:
        settings = self.config.validation
        if not settings.every:
            return None
        scores = SampledScores(self.config, self.parts, self.patch) if settings.scores else None
        held_out = HeldOutPairs(self.config, self.parts, self.patch, scores, self.conditions)
        held_out.before = self.before
        return held_out


class HeldOutPairs(PairPacks, HeldOutLatents):
    """Held-out pairs, each once in every bin of noise levels, both its clips with the same noise."""

    figures, higher = FIGURES, ("margin", "accuracy")

    def _encoded(self, seed: int) -> EncodedPairs:
        return EncodedPairs(self.source, self.parts, seed, self.conditions)

    def _entries(self, draws: Sequence[Draw]) -> list[Encoded]:
        return [entry for draw in draws[::2] for entry in self.cache.load_pair(draw.index)]

    def measured(self, model: nn.Module, pack: PairPack) -> Tensor:
        found = self.preferred(model, pack)
        return torch.stack([getattr(found, name) for name in FIGURES])


class EncodedPairs(EncodedClips):
    """Both clips of pairs, each encoded when it is first asked for, and kept."""

    @torch.no_grad()
    def load_pair(self, i: int) -> tuple[Encoded, Encoded]:
        """Of the preferred clip of pair i, and of the other."""
        if i not in self._entries:
            self._entries[i] = tuple(map(self._encode, self.source.load_pair(i, self.seed, i)))
        return self._entries[i]
