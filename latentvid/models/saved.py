"""Reading saved models, with one clear message where a folder is not what it should be."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

from ..errors import UserError
from ..limits import check_arguments, shown
from .building import parameters_of

M = TypeVar("M", bound=ModelMixin)
WEIGHTS = "*.safetensors"


def load_component(cls: type[M], folder: str | Path) -> M:
    """A model of class `cls` from a folder in diffusers' format, in eval mode and fp32. Raises UserError."""
    folder = Path(folder)
    found = class_name(folder, cls.__name__)
    if found != cls.__name__:
        raise UserError(f"{folder} holds a {found}, not a {cls.__name__}: give the folder of the right model")
    weights = list(folder.glob(WEIGHTS))
    if not weights:
        raise UserError(f"{folder} has a config but no weights ({WEIGHTS}): its training or its copy is not finished")
    config = read_arguments(cls.__init__, folder / "config.json")
    _check_size(cls, config, folder, sum(file.stat().st_size for file in weights))
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
    """The object in a JSON file. Raises UserError where it holds something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}): copy it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds {shown(found)} in place of a JSON object: copy it again")
    return found


def read_arguments(function: Callable, file: Path) -> dict[str, Any]:
    """What a saved configuration gives a function, with each type and number checked before anything is built.

    What the function does not take is left out: folders of other versions, and of diffusers, have more. Raises
    UserError, which names file and key.
    """
    config = {key: value for key, value in read_json(file).items() if not key.startswith("_")}
    check_arguments(function, config, f"{file}: ", others=True)
    return {key: value for key, value in config.items() if key in inspect.signature(function).parameters}


def _check_size(cls: type[ModelMixin], config: dict[str, Any], folder: Path, held: int) -> None:
    """Raises UserError where the config tells of more parameters than weights of so many bytes can hold."""
    try:
        count = parameters_of(cls, config)
    except (TypeError, ValueError, IndexError, AssertionError, RuntimeError, ArithmeticError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{folder / 'config.json'} makes no {cls.__name__} ({why:.200}): copy it again") from error
    if count > held:
        raise UserError(
            f"{folder / 'config.json'} tells of a {cls.__name__} of {count:,} parameters, and its weights have "
            f"{held:,} bytes: they do not belong together, or the copy is not finished"
        )


def need(file: Path, message: str) -> None:
    if not file.is_file():
        raise UserError(f"{message}: give the folder that training or save_pretrained wrote")
