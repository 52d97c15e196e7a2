"""Loading saved parts, with one clear message where a folder is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

from ..errors import UserError
from ..models.autoencoder import CausalVideoAutoencoder
from ..models.transformer import VideoDiT
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
        model, info = cls.from_pretrained(folder, low_cpu_mem_usage=False, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded: {' '.join(str(error).split()):.300}") from error
    # diffusers only warns of these, and leaves random weights in place
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if wrong:
        raise UserError(
            f"{folder} was saved by another version of {cls.__name__}: {len(wrong)} tensors differ, e.g. {wrong[0]}"
        )
    return model.eval()


def load_pipeline(folder: str | Path, device: torch.device | str | None = None) -> LatentVideoPipeline:
    """A saved pipeline, on `device` (by default CUDA where there is one). Raises UserError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}: train one (make demo), or give --model")
    _need(folder / "model_index.json", f"{folder} is not a pipeline (model_index.json is missing)")
    index = _json(folder / "model_index.json")
    for name in ("vae", "transformer", "scheduler", "text_encoder", "tokenizer"):
        if name not in index:
            raise UserError(f"{folder} has no {name} (see model_index.json): it is another kind of pipeline")
    if not list((folder / "text_encoder").glob(WEIGHTS)):
        raise UserError(f"{folder / 'text_encoder'} has no weights ({WEIGHTS}): the export or the copy is not finished")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    parts = {
        "vae": load_component(CausalVideoAutoencoder, folder / "vae"),
        "transformer": load_component(VideoDiT, folder / "transformer"),
    }
    try:
        pipeline = LatentVideoPipeline.from_pretrained(folder, local_files_only=True, **parts)
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
