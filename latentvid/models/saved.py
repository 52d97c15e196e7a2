"""Reading saved models, with one clear message where a folder is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

from ..errors import UserError

M = TypeVar("M", bound=ModelMixin)
WEIGHTS = "*.safetensors"


def load_component(cls: type[M], folder: str | Path) -> M:
    """A model of class `cls` from a folder in diffusers' format, in eval mode and fp32. Raises UserError."""
    folder = Path(folder)
    found = class_name(folder, cls.__name__)
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


def class_name(folder: Path, wanted: str) -> str | None:
    """The `_class_name` in the folder's config.json; raises UserError, which names what was `wanted`, without one."""
    need(folder / "config.json", f"{folder} holds no {wanted} (config.json is missing)")
    return read_json(folder / "config.json").get("_class_name")


def read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): copy it again") from None


def need(file: Path, message: str) -> None:
    if not file.is_file():
        raise UserError(f"{message}: give the folder that training or save_pretrained wrote")
