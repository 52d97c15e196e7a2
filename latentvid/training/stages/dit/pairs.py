"""Packs of pairs of clips, and what a model prefers in them beside what it preferred at first.

Axes: N pairs of a pack. Its layout has 2 N samples: of each pair the preferred clip, then the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ....config.schema import DitConfig
from ....data.clips import ClipSource
from ....data.plan.plan import Draw
from ....diffusion.preference import Preference, preference
from ....models.adapters.lora import raw_of
from ...compute import compute_type
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


class Before:
    """The model as it was at first, which is never trained: a `copy` of it, or where that is None the `model` itself
    with its adapters off."""

    def __init__(self, model: nn.Module, copy: nn.Module | None, config: DitConfig, device: torch.device) -> None:
        self.model, self.copy, self.config, self.device = model, copy, config, device

    @contextmanager
    def instead_of(self, called: Callable) -> Iterator[Callable]:
        """Inside, what to call in the place of `called`, which calls the model as a strategy or a measurement does;
        nothing has gradients."""
        if self.config.run.dry_run:  # which counts memory, of what stands nowhere: the model costs what a copy does
            with torch.no_grad():
                yield called
        elif self.copy is None:
            with torch.no_grad(), adapters_off(self.model):
                yield called
        else:
            with torch.no_grad():
                yield self._call

    def _call(self, *args: Any, **kwargs: Any) -> Tensor:
        with compute_type(self.config, self.device):
            return self.copy(*args, **kwargs)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as if it had no adapter. What is trained stays so: peft's own switch freezes it."""
    layers = [layer for layer in raw_of(model).modules() if isinstance(layer, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off


class PairPacks(DitPacks):
    """Each sample is a pair: both clips in one pack, with the same window, flip, caption, noise levels and noise."""

    clips_each = 2
    reference: Before

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "reference"}

    def _open_clips(self, paths: Sequence[Path]) -> ClipSource:
        opened = partial(open_paired_manifests, rejected=self.config.preference.rejected_column)
        return open_clips(self.config, self.parts, paths, self.patch, opened=opened)

    def make_pack(self, draws: Sequence[Draw]) -> PairPack:
        return PairPack.of(super().make_pack([draw for draw in draws for _ in range(2)]))

    def preferred(self, model: nn.Module, pack: PairPack) -> Preference:
        """What the model prefers in each pair [N], and the loss that teaches it to."""
        pack = pack if pack.ready else self.prepare(pack)
        with self.reference.instead_of(model) as frozen:  # first: what it gathers of a sharded model is still right
            before = self.errors(frozen, pack)[0]
        now = self.errors(model, pack)[0]
        return preference(now.unflatten(0, (-1, 2)), before.unflatten(0, (-1, 2)), self.config.preference.beta)
