"""What a model is told of how much moves in each sample (`model.motion_condition`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ....config.schema import DitConfig
from ....data.clips import ClipSource
from ....errors import UserError
from ....models.conditions import NO_MOTION


def tells_motion(config: DitConfig) -> bool:
    """Whether the model is told of motion; `config.model` says so, or `init` did."""
    return bool(config.model.get("motion_condition"))


def is_measured(config: DitConfig) -> bool:
    """Whether motion is told, of some samples, as it is measured of their frames."""
    return tells_motion(config) and config.data.motion_column is None and config.data.motion_dropout < 1


def check_motion(config: DitConfig, clips_each: int, published: bool = False) -> bool:
    """Whether the manifests' column is told. published: to a published model that is told of motion, by a column alone.
    Raises UserError where motion cannot be known, and for a column that nothing reads."""
    data, off = config.data, "or train without any by data.motion_dropout=1"
    if not (tells_motion(config) or published):
        if data.motion_column is not None:
            raise UserError("data.motion_column is for model.motion_condition=true: set that, or leave it out")
        return False
    if data.motion_dropout == 1 and data.motion_column is not None:
        raise UserError("data.motion_dropout=1 leaves nothing of data.motion_column: leave one of them out")
    if data.motion_dropout == 1 or (published and data.motion_column is None):
        return False
    if data.latents is not None:
        raise UserError(
            f"data.latents: a cache does not hold motion strengths, which model.motion_condition tells: train on the "
            f"clips, data.manifest, {off}"
        )
    if clips_each > 1:
        raise UserError(f"model.motion_condition: the clips of a pair have no motion strength in common: {off[3:]}")
    if is_measured(config) and config.train.sequence_parallel > 1:
        raise UserError(
            "model.motion_condition: motion is measured of clips as they are read, which processes that share a pack "
            f"share out: set train.sequence_parallel=1, name data.motion_column, {off}"
        )
    return data.motion_column is not None


def of_column(source: ClipSource, index: int) -> float:
    """What the column says of window `index`; NaN where it says nothing, and of a picture."""
    return math.nan if source.shapes[index][0] == 1 else float(source.motion[source.windows.sample[index]])


def as_told(strengths: Sequence[float]) -> Tensor:
    """float32 [N], for `Conditions.motion`, of strengths that are NaN where they are not known."""
    return torch.tensor([NO_MOTION if math.isnan(each) else each for each in strengths], dtype=torch.float32)
