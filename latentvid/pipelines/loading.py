"""Loading a saved pipeline, or a published model, onto a device."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import UserError
from ..models.compiling import compile_blocks
from ..models.open import is_published, read_published
from ..precision import MixedPrecision, choose, dtype_of
from .folder import check_index
from .latent_video import LatentVideoPipeline
from .open_video import OpenVideoPipeline


def load_pipeline(
    folder: str | Path,
    device: torch.device | str | None = None,
    *,
    compiled: bool = False,
    mixed_precision: MixedPrecision = "auto",
) -> LatentVideoPipeline:
    """A saved pipeline, or a published model by its folder or hub name, on `device` (by default CUDA where there is
    one). Raises UserError.

    compiled: the first step compiles the transformer's blocks, once for clips of all shapes. mixed_precision: weights
    of published models are read in what they are computed in, those of our own in fp32.
    """
    published = None
    if is_published(folder):
        published = read_published(folder)
    else:
        check_index(Path(folder), LatentVideoPipeline)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    if published is None:
        pipeline = LatentVideoPipeline.from_pretrained(folder)
    else:
        pipeline = OpenVideoPipeline.of(published, dtype_of(choose(mixed_precision, torch.device(device))))
    if compiled:
        for network in pipeline.experts:
            compile_blocks(network)
    return pipeline.to(device)
