"""Packs without content, to count what a pass over such samples costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ....models.conditions import Conditions
from ....packing import Grid, Packed, Reference, patch_size
from .pack import DitPack

if TYPE_CHECKING:
    from .task import DitTask


def blank(task: DitTask, grids: Sequence[Grid], references: Sequence[Sequence[Reference]] = ()) -> DitPack:
    """`Task.blank_pack`."""
    layout, text_layout = Packed.of(grids, references), Packed.of_lengths([round(task.mean_text)] * len(grids))
    nothing = torch.zeros(layout.tokens, task.features)
    text = torch.zeros(text_layout.tokens, task.text.dim)
    rates = torch.zeros(len(grids))
    pack = DitPack(nothing, torch.ones(layout.frames), layout, rates, clean=nothing, text=text, text_layout=text_layout)
    if task.told:
        known = torch.zeros(layout.tokens, patch_size(task.patch), dtype=torch.bool)
        pack = replace(pack, known=known, known_tokens=torch.zeros_like(layout.frame_tokens))
    if task.sees_low:
        channels = torch.zeros(layout.tokens, task.model.channels * patch_size(task.patch))
        pack = replace(pack, conditions=Conditions(channels=channels))
    if task.controlled:
        pack = replace(pack, control=nothing)
    if task.config.prior.by_model:
        pack = replace(pack, by_model=torch.zeros(len(grids), dtype=torch.bool))
    if task.conditions is None:
        return pack
    several = len(task.published.recipe.text) > 1
    given = task.conditions.blank(layout, task.text.encode([""]) if several else None)
    return replace(pack, conditions=given, ready=True)
