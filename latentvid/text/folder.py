"""A text encoder's files, looked at before any library opens them; and where the hub's are had from."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import T5Config, T5EncoderModel

from ..errors import UserError, brief
from ..limits import check_values
from ..weights import check_file, check_tensors, read_object, shapes_in, weight_files

TOKENIZERS = ("tokenizer.json", "spiece.model")
LARGEST_TOKENIZER = 256 * 2**20
_TABLES = ("shared.weight", "encoder.embed_tokens.weight")


class TextError(UserError):
    """A text encoder that cannot be loaded, or a prompt that it cannot take."""


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that cannot be one of encoder and tokenizer."""
    if not (folder / "config.json").exists():
        inside = folder / "text_encoder"
        hint = f"; {inside} looks like one of a pipeline: load the pipeline" if inside.is_dir() else ""
        raise TextError(f"{folder} has no config.json: give a transformers T5 folder{hint}")


def check_encoder(folder: Path) -> None:
    """Raises UserError unless the folder's weights are, name by name, those of the T5 that its config.json tells of."""
    file = folder / "config.json"
    config = read_object(file)
    _refuse_code(file, config)
    files = weight_files(folder, "model")
    if config.get("model_type", "t5") not in ("t5", "umt5"):
        raise TextError(f"{file}: model_type={config['model_type']!r:.60}: it cannot be loaded as a T5")
    held = shapes_in(files)
    wanted = _shapes_of(file, config)
    held_bytes = sum(weights.stat().st_size for weights in files)
    count = sum(math.prod(shape) for shape in wanted.values())
    if count > held_bytes:
        raise TextError(
            f"text encoder {folder} cannot be loaded as a T5: config.json tells of {count:,} parameters, and the "
            f"weights have {held_bytes:,} bytes: copy both again"
        )
    held = {name: shape for name, shape in held.items() if not name.startswith(("decoder.", "lm_head."))}
    table = held.get(_TABLES[0], held.get(_TABLES[1]))  # one table, saved under either name or both
    if table is not None:
        held |= {name: held.get(name, table) for name in _TABLES if name in wanted}
    check_tensors(folder, "T5 encoder", wanted, held)


def _shapes_of(file: Path, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of the encoder that a config.json tells of. Raises UserError where it tells of none."""
    try:
        check_values(f"{file}: ", config)
        with torch.device("meta"):
            encoder = T5EncoderModel(T5Config(**config))
    except UserError:
        raise
    except Exception as error:  # transformers raises its validator's own errors, which differ by version
        raise TextError(f"{file} makes no T5 ({brief(error)}): copy it again") from error
    return {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}


def check_tokenizer(folder: Path) -> None:
    """Raises UserError for a folder without a tokenizer, and for one that asks for code of its own."""
    found = [folder / name for name in TOKENIZERS if (folder / name).exists()]
    if not found:
        raise TextError(
            f"{folder} has no tokenizer ({' or '.join(TOKENIZERS)}): save the tokenizer into the same folder"
        )
    for name in (*TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists() or (folder / name).is_symlink():
            check_file(folder / name)
            if (folder / name).stat().st_size > LARGEST_TOKENIZER:
                raise TextError(f"{folder / name} is larger than any tokenizer: copy it again")
    settings = folder / "tokenizer_config.json"
    if settings.exists():
        found = read_object(settings)
        _refuse_code(settings, found)
        longest = found.get("model_max_length")
        is_number = isinstance(longest, int | float) and not isinstance(longest, bool)
        if longest is not None and not (is_number and longest >= 1):
            raise TextError(f"{settings}: model_max_length={longest!r:.60}: must be a number of tokens, at least 1")


def _refuse_code(file: Path, config: dict[str, Any]) -> None:
    if "auto_map" in config:
        raise TextError(f"{file}: auto_map={config['auto_map']!r:.60} asks for code of its own, which is never run")


def hub_options(name: str) -> dict[str, bool]:
    """How to load the hub's ``name``: from the network, or from the cache when the hub does not answer.

    :class:`TextError` at once when neither has it, and for what can only be a missing folder.
    """
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) or ("/" in name and Path(name).parent.is_dir()):
        raise TextError(f"text encoder folder {name} does not exist: give a transformers T5 folder or a hub name")
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # the hub's client raises its HTTP library's own errors, which differ by version
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            raise TextError(
                f"text encoder {name} is neither a folder nor to be had from the hub ({str(error).strip()[:200]}): "
                "give a transformers T5 folder, or fetch it where there is a network"
            ) from error
        return {"local_files_only": True}
    return {"local_files_only": False}
