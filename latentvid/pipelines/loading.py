"""Loading saved parts, with one clear message where a folder is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

from ..errors import UserError
from .latent_video import LatentVideoPipeline

M = TypeVar("M", bound=ModelMixin)
WEIGHTS = "*.safetensors"


def load_component(cls: type[M], folder: str | Path) -> M:
    """A model of class `cls` from a folder in diffusers' format, in eval mode. Raises UserError."""
    folder = Path(folder)
    _need(folder / "config.json", f"{folder} holds no {cls.__name__} (config.json is missing)")
    found = _json(folder / "config.json").get("_class_name")
    if found != cls.__name__:
        raise UserError(f"{folder} holds a {found}, not a {cls.__name__}: give the folder of the right model")
    if not list(folder.glob(WEIGHTS)):
        raise UserError(f"{folder} has a config but no weights ({WEIGHTS}): its training or its copy is not finished")
    try:
        return cls.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded: {' '.join(str(error).split()):.300}") from error


def load_pipeline(folder: str | Path, device: torch.device | str | None = None) -> LatentVideoPipeline:
    """A saved pipeline, on `device` (by default CUDA where there is one). Raises UserError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}: train one (make demo), or give --model")
    _need(folder / "model_index.json", f"{folder} is not a pipeline (model_index.json is missing)")
    index = _json(folder / "model_index.json")
    for name in ("vae", "transformer", "text_encoder"):
        if name in index and not list((folder / name).glob(WEIGHTS)):
            raise UserError(f"{folder / name} has no weights ({WEIGHTS}): the export or the copy is not finished")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    try:
        pipeline = LatentVideoPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded: {' '.join(str(error).split()):.300}") from error
    return pipeline.to(device)


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): copy it again") from None


def _need(file: Path, message: str) -> None:
    if not file.is_file():
        raise UserError(f"{message}: give the folder that training or save_pretrained wrote")
