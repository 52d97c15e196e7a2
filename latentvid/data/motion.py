"""Motion strength of clips: how far things move in a second, measured of the frames or told by a manifest's column.

Axes: F frames, H height, W width; clips are uint8 [F,H,W,3].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..limits import RangeError, check
from .manifest.manifest import Manifest
from .signals import flow_vectors


def motion_strength(pixels: Tensor, rate: float) -> float:
    """The mean length of the optical flow (DIS, `signals.flow_vectors`) over all pixels and pairs of neighbouring
    frames, in percent of the frame's diagonal a second. NaN of a picture, and where the rate is 0, not known.
    """
    if len(pixels) < 2 or not rate > 0:
        return math.nan
    lengths = [flow.square().sum(-1).sqrt().mean() for flow in flow_vectors(pixels)]
    height, width = pixels.shape[1:3]
    return 100 * rate * float(sum(lengths) / len(lengths)) / math.hypot(height, width)


def motion_column(manifests: Sequence[Manifest], column: str) -> np.ndarray:
    """float32 [samples]: what a column says of the clips of all manifests; NaN where it is empty. Raises
    UserError for a column that no manifest has, and for what is no number from 0 up."""
    if not any(column in manifest.extra for manifest in manifests):
        raise UserError(
            f"data.motion_column: no manifest has a column `{column}`: correct the name, add it, or leave "
            f"motion_column out, and motion is measured ({', '.join(str(manifest.source) for manifest in manifests)})"
        )
    return np.array([value for manifest in manifests for value in _values(manifest, column)], np.float32)


def _values(manifest: Manifest, column: str) -> Iterable[float]:
    cells = manifest.extra.get(column) or [None] * len(manifest.samples)
    for i, cell in enumerate(cells):
        try:
            yield math.nan if _is_empty(cell) else check("motion_strength", float(cell))
        except (TypeError, ValueError, RangeError):
            raise UserError(
                f"{manifest.source}: the column `{column}` of {manifest.samples.path(i)} is {str(cell):.40}: give a "
                "number from 0 up, or leave it empty"
            ) from None


def _is_empty(cell: Any) -> bool:
    return cell is None or cell == "" or cell != cell  # the last: NaN, as tables write what is missing
