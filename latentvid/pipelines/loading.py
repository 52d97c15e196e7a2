"""Loading a saved pipeline, with one clear message where a folder is not what it should be."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError

from ..diffusion.scheduler import LatentVideoScheduler
from ..errors import UserError
from ..models.interchange import load_vae, raw_vae
from ..models.saved import WEIGHTS, load_component, need, read_arguments, read_json
from ..models.transformer import VideoDiT
from ..text import check_config
from .latent_video import LatentVideoPipeline


def load_pipeline(
    folder: str | Path, device: torch.device | str | None = None, *, compiled: bool = False
) -> LatentVideoPipeline:
    """A saved pipeline, on `device` (by default CUDA where there is one). Raises UserError.

    compiled: the first step compiles the transformer's blocks, once for clips of all shapes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}: train one (make demo), or give --model")
    need(folder / "model_index.json", f"{folder} is not a pipeline (model_index.json is missing)")
    index = read_json(folder / "model_index.json")
    for name in ("vae", "transformer", "scheduler", "text_encoder", "tokenizer"):
        if name not in index:
            raise UserError(f"{folder} has no {name} (see model_index.json): it is another kind of pipeline")
    if not list((folder / "text_encoder").glob(WEIGHTS)):
        raise UserError(f"{folder / 'text_encoder'} has no weights ({WEIGHTS}): the export or the copy is not finished")
    check_config(folder / "text_encoder")
    read_arguments(LatentVideoPipeline.__init__, folder / "model_index.json")
    schedule = folder / "scheduler" / "scheduler_config.json"
    need(schedule, f"{folder} has no scheduler ({schedule.name} is missing)")
    read_arguments(LatentVideoScheduler.__init__, schedule)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    parts = {
        "vae": raw_vae(load_vae(folder, "vae")),
        "transformer": load_component(VideoDiT, folder / "transformer"),
    }
    try:
        pipeline = LatentVideoPipeline.from_pretrained(folder, local_files_only=True, **parts)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded: {' '.join(str(error).split()):.300}") from error
    if compiled:
        pipeline.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)
    return pipeline.to(device)
