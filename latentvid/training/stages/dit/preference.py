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
from ....models.flops import TRAINING, GridFlops
from ....packing import Grid, Reference
from .pairs import Before, PairPack, PairPacks
from .sampled_scores import SampledScores
from .task import DitTask
from .trained import dropout_of
from .validation import EncodedClips, HeldOutLatents

FIGURES = ("loss", "margin", "accuracy", "error_preferred", "error_rejected")  # as `Preference` has them
PASSES = 1 + 1 / TRAINING  # of the model and of the reference, which has no backward pass, over one of the model


class PreferenceTask(PairPacks, DitTask):
    """What is trained is the transformer, on the loss of `diffusion.preference`; the plan's samples are pairs.

    The reference is the model that the run begins with, also where it goes on: `init` (or `model.from`) is read again.
    With an adapter it is the model itself with the adapter off. Where weights are trained it is a copy, whole on every
    process whatever the strategy, so that it computes what the model computed.
    """

    def __init__(self, config: DitConfig, device: torch.device, data: bool = True) -> None:
        super().__init__(config, device, data)
        if not data:
            return
        self.tokens, self.costs = self.clips_each * self.tokens, self.clips_each * self.costs
        self.reference = Before(self.model, self._copy(device), self.config, device)

    def _copy(self, device: torch.device) -> nn.Module | None:
        """The model as it was at first, where no adapter can be switched off."""
        if self.config.adapter.kind != "none":
            return None
        origin = self.origin  # which is of the model that is trained, and of a run's start
        copy = self.new_model().requires_grad_(False).eval()
        self.origin = origin
        return copy if self.config.run.dry_run else copy.to(device)

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        copy = self.reference.copy
        return super().frozen if copy is None else (*super().frozen, copy)

    def grid_flops(self, grid: Grid, references: Sequence[Reference] = ()) -> GridFlops:
        one = super().grid_flops(grid, references)
        return GridFlops(round(self.clips_each * PASSES * one.model), self.clips_each * one.encode)

    def flops(self, pack: PairPack) -> float:
        return PASSES * super().flops(pack)

    def blank_pack(self, grids: Sequence[Grid], references: Sequence[Sequence[Reference]] = ()) -> PairPack:
        twice = ([each for each in of_pairs for _ in range(self.clips_each)] for of_pairs in (grids, references))
        return PairPack.of(super().blank_pack(*twice))

    def loss(self, model: nn.Module, pack: PairPack, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        with dropout_of(self.config, pack.numbers[0] if pack.numbers else 0):
            found = self.preferred(model, pack)
        return found.loss, {name: getattr(found, name) for name in FIGURES[1:]}

    def held_out(self) -> HeldOutPairs | None:
        settings = self.config.validation
        if not settings.every:
            return None
        scores = SampledScores(self.config, self.parts, self.patch) if settings.scores else None
        held_out = HeldOutPairs(self.config, self.parts, self.patch, scores, self.conditions)
        held_out.reference = self.reference
        return held_out


class HeldOutPairs(PairPacks, HeldOutLatents):
    """Held-out pairs, each once in every bin of noise levels, both its clips with the same noise."""

    figures, higher = FIGURES, ("margin", "accuracy")

    def _encoded(self, seed: int) -> EncodedPairs:
        return EncodedPairs(self.source, self.vae, self.text, seed, self.conditions)

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
