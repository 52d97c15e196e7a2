"""Reading saved models, with one clear message where a folder is not what it should be."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

from ..errors import UserError, brief
from ..limits import check_arguments
from ..weights import Shapes, check_finite, check_tensors, read_object, shapes_in, weight_files
from .building import shapes_of

M = TypeVar("M", bound=ModelMixin)


STEM = "diffusion_pytorch_model"  # of diffusers' weights
# attentions of older files, which diffusers renames as it loads them (`_fix_state_dict_keys_on_load`)
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class SavedModel:
    """Beside `ModelMixin`, before it: `from_pretrained` refuses folders that diffusers fills with random numbers."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Any:
        """As diffusers', of a folder here: weights missing, of other shapes or not finite raise UserError."""
        if "config" not in options and "state_dict" not in options:
            return checked(cls, _part(folder, options), super().from_pretrained, folder, options)
        return super().from_pretrained(folder, **options)


def load_component(cls: type[M], folder: str | Path) -> M:
    """A model of class `cls` from a folder in diffusers' format, in eval mode and fp32. Raises UserError."""
    if issubclass(cls, SavedModel):
        return cls.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    return checked(cls, Path(folder), cls.from_pretrained, folder, {"low_cpu_mem_usage": False}).eval()


def checked(cls: type[M], folder: Path, load: Callable[..., Any], source: str | Path, options: dict[str, Any]) -> Any:
    """`load(source, **options)`, which reads `folder`: between what can be told of its files and of its numbers."""
    check_saved(cls, folder)
    try:
        loaded = load(source, **options | {"use_safetensors": True, "local_files_only": True})
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded: {brief(error, 300)}") from error
    check_finite(loaded[0] if isinstance(loaded, tuple) else loaded, folder)
    return loaded


def _part(folder: str | Path, options: Mapping[str, Any]) -> Path:
    return Path(folder) / (options.get("subfolder") or "")


def check_saved(cls: type[ModelMixin], folder: Path) -> None:
    """Raises UserError unless a folder is one of that class, by its config and by its weights' names and shapes."""
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}: give the folder that training or save_pretrained wrote")
    found = class_name(folder, cls.__name__)
    if found != cls.__name__:
        raise UserError(f"{folder} holds a {found}, not a {cls.__name__}: give the folder of the right model")
    files = weight_files(folder, STEM)
    held = {name: shape for name, shape in shapes_in(files).items() if not _left_over(cls, name)}
    config = read_arguments(cls.__init__, folder / "config.json")
    wanted = _shapes_of(cls, config, folder, sum(file.stat().st_size for file in files))
    check_tensors(folder, cls.__name__, wanted, {_name_now(name, wanted): shape for name, shape in held.items()})


def _name_now(name: str, wanted: Shapes) -> str:
    """Of a tensor, in the class as it is."""
    if name in wanted:
        return name
    new = next((name.replace(old, now) for old, now in RENAMED.items() if old in name), name)
    return new if new in wanted else name


def _left_over(cls: type[ModelMixin], name: str) -> bool:
    """Whether published weights have a tensor that the class itself says it does without (Wan's `norm_added_q`)."""
    return any(re.search(pattern, name) for pattern in getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or ())


def class_name(folder: Path, wanted: str) -> str:
    """The `_class_name` in the folder's config.json; raises UserError, which names what was `wanted`, without one."""
    if not (folder / "config.json").exists():
        need(folder / "config.json", f"{folder} holds no {wanted} (config.json is missing)")
    config = read_object(folder / "config.json")
    name = config.get("_class_name")
    if isinstance(name, str):
        return name
    others = config.get("architectures")  # as transformers say it: a text encoder's folder
    held = f"a {others[0]}" if isinstance(others, list) and others else "a model without _class_name in config.json"
    raise UserError(f"{folder} holds {held}, not a {wanted}: give the folder of the right model")


def read_arguments(function: Callable, file: Path) -> dict[str, Any]:
    """What a saved configuration gives a function, with each type and number checked before anything is built.

    What the function does not take is left out: folders of other versions, and of diffusers, have more. Raises
    UserError, which names file and key.
    """
    config = {key: value for key, value in read_object(file).items() if not key.startswith("_")}
    check_arguments(function, config, f"{file}: ", others=True)
    return {key: value for key, value in config.items() if key in inspect.signature(function).parameters}


def _shapes_of(cls: type[ModelMixin], config: dict[str, Any], folder: Path, held: int) -> Shapes:
    """The shapes of a model's tensors. Raises UserError where weights of so many bytes cannot hold them."""
    try:
        shapes = shapes_of(cls, config)
    except (TypeError, ValueError, IndexError, AssertionError, RuntimeError, ArithmeticError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{folder / 'config.json'} makes no {cls.__name__} ({why:.200}): copy it again") from error
    count = sum(map(math.prod, shapes.values()))
    if count > held:
        raise UserError(
            f"{folder / 'config.json'} tells of a {cls.__name__} of {count:,} parameters, and its weights have "
            f"{held:,} bytes: they do not belong together, or the copy is not finished"
        )
    return shapes


def need(file: Path, message: str) -> None:
    if not file.is_file():
        raise UserError(f"{message}: give the folder that training or save_pretrained wrote")
