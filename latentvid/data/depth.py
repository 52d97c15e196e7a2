"""Depth of a clip's frames, as a network of transformers estimates it.

Axes: F frames, H height, W width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError

TOGETHER = 4  # frames that go through the network as one batch


def depth(pixels: Tensor, where: str) -> Tensor:
    """uint8 [F,H,W,3] -> what the network in the folder (or of the hub name) `where` predicts, grey uint8 [F,H,W,3].

    0 is the clip's least value and 255 its greatest, over all of its frames: MiDaS, DPT and Depth Anything predict
    inverse depth, so what is near is bright; ZoeDepth and metric networks predict depth, so what is far is. A clip
    whose every value is the same is 0. Raises UserError for values that are no numbers.
    """
    frames = [Image.fromarray(frame.numpy()) for frame in pixels]
    found = [each["predicted_depth"] for each in _estimator(where)(frames, batch_size=TOGETHER)]
    values = torch.stack([each.float().reshape(pixels.shape[1:3]) for each in found])
    low, high = values.aminmax()
    if not bool(torch.isfinite(high - low)):
        raise UserError(f"signal_model {where} predicts depths that are no numbers: give another network")
    grey = (255 * (values - low) / (high - low).clamp_min(1e-12)).round().to(torch.uint8)
    return grey[..., None].repeat(1, 1, 1, 3)


def check_depth(where: str) -> None:
    """Raises UserError where there is no such network."""
    _estimator(where)


@cache
def _estimator(where: str) -> Any:
    """transformers' pipeline, which makes the network's input, and depths of the frames' own size: once a process."""
    from transformers import pipeline

    try:
        return pipeline("depth-estimation", model=where, device="cpu")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"signal_model {where} holds no network of depth with its image processor ({reason}): give the folder or "
            "hub name of one of transformers, such as a Depth Anything, or the signal itself (column, --reference)"
        ) from None
