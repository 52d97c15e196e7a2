"""Loading a saved pipeline onto a device."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import UserError
from ..models.compiling import compile_blocks
from .folder import check_index
from .latent_video import LatentVideoPipeline


def load_pipeline(
    folder: str | Path, device: torch.device | str | None = None, *, compiled: bool = False
) -> LatentVideoPipeline:
    """A saved pipeline, on `device` (by default CUDA where there is one). Raises UserError.

    compiled: the first step compiles the transformer's blocks, once for clips of all shapes.
    """
    check_index(Path(folder), LatentVideoPipeline)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    pipeline = LatentVideoPipeline.from_pretrained(folder)
    if compiled:
        compile_blocks(pipeline.transformer)
    return pipeline.to(device)
