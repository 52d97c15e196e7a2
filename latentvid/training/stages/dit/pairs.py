"""Packs of pairs of clips, and what a model prefers in them beside what it preferred at first.

Axes: N pairs of a pack. Its layout has 2 N samples: of each pair the preferred clip, then the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from torch import nn

from ....data.clips import ClipSource
from ....data.plan.plan import Draw
from ....diffusion.preference import Preference, preference
from ...feed.manifests import open_paired_manifests
from .clips import open_clips
from .data import DitPacks
from .pack import DitPack


@dataclass(frozen=True)
class PairPack(DitPack):
    """`counted` is of each pair, as `tokens` are; `numbers` and `made` are of each clip: every number twice."""

    @classmethod
    def of(cls, pack: DitPack) -> PairPack:
        """counted: of each clip of the pack."""
        same = {f.name: getattr(pack, f.name) for f in fields(pack)}
        return cls(**same | {"counted": tuple(_by_pair(pack.counted))})

    @property
    def tokens(self) -> list[int]:
        return _by_pair(self.layout.sample_lengths)


def _by_pair(counts: Sequence[int]) -> list[int]:
    return [one + other for one, other in zip(counts[::2], counts[1::2], strict=True)]


class PairPacks(DitPacks):
    """Each sample is a pair: both clips in one pack, with the same window, flip, caption, noise levels and noise."""

    clips_each = 2

    def _open_clips(self, paths: Sequence[Path]) -> ClipSource:
        opened = partial(open_paired_manifests, rejected=self.config.preference.rejected_column)
        return open_clips(self.config, self.parts, paths, self.patch, opened=opened)

    def make_pack(self, draws: Sequence[Draw]) -> PairPack:
        return PairPack.of(super().make_pack([draw for draw in draws for _ in range(2)]))

    def preferred(self, model: nn.Module, pack: PairPack) -> Preference:
        """What the model prefers in each pair [N], and the loss that teaches it to."""
        pack = pack if pack.ready else self.prepare(pack)
        with self.before.instead_of(model) as frozen:  # first: what it gathers of a sharded model is still right
            before = self.errors(frozen, pack)[0]
        now = self.errors(model, pack)[0]
        return preference(now.unflatten(0, (-1, 2)), before.unflatten(0, (-1, 2)), self.config.preference.beta)
