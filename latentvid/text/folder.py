"""A text encoder's files, looked at before any library opens them; and where the hub's are had from."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import PreTrainedModel

from ..errors import UserError, brief
from ..limits import check_values
from ..weights import check_file, check_tensors, read_object, shapes_in, weight_files
from .kinds import KINDS

TOKENIZERS = ("tokenizer.json", "spiece.model")
OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json")  # of published pipelines
BYTES = "ByT5Tokenizer"  # has no file of tokens
TOKENIZER_CLASSES = {  # without "Fast"
    *("TokenizersBackend", "PreTrainedTokenizer", "T5Tokenizer", "CLIPTokenizer", "LlamaTokenizer", "Qwen2Tokenizer"),
    *("GemmaTokenizer", BYTES),
}
LARGEST_TOKENIZER = 256 * 2**20
_TABLES = ("shared.weight", "encoder.embed_tokens.weight")
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


class TextError(UserError):
    """A text encoder that cannot be loaded, or a prompt that it cannot take."""


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that cannot be one of encoder and tokenizer."""
    if not (folder / "config.json").exists():
        inside = folder / "text_encoder"
        hint = f"; {inside} looks like one of a pipeline: load the pipeline" if inside.is_dir() else ""
        raise TextError(f"{folder} has no config.json: give a transformers T5 folder{hint}")


def check_encoder(folder: Path, only: str | None = None) -> str:
    """The kind of encoder in a folder (of `KINDS`). Raises UserError unless its weights can be those of the encoder
    that its config.json tells of: of a T5 name by name, of others as many. only: the one kind that is wanted."""
    file = folder / "config.json"
    config = read_object(file)
    _refuse_code(file, config)
    files = weight_files(folder, "model")
    kind = config.get("model_type", only)
    if only and kind != only:
        raise TextError(f"{file}: model_type={kind!r:.60}: it cannot be loaded as a {only.upper()}")
    if kind not in KINDS:
        raise TextError(f"{file}: model_type={kind!r:.60}: must be {', '.join(KINDS)}: no other text encoder is known")
    name, held = kind.upper(), shapes_in(files)
    model = _made(file, kind, config)
    held_bytes = sum(weights.stat().st_size for weights in files)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > held_bytes and "quantization_config" not in config:
        raise TextError(
            f"text encoder {folder} cannot be loaded as a {name}: config.json tells of {count:,} parameters, and the "
            f"weights have {held_bytes:,} bytes: copy both again"
        )
    if kind in ("t5", "umt5") and "quantization_config" not in config:
        _check_t5(folder, name, model, held)
    return kind


def _check_t5(folder: Path, name: str, model: PreTrainedModel, held: dict[str, tuple[int, ...]]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    held = {name: shape for name, shape in held.items() if not name.startswith(("decoder.", "lm_head."))}
    table = held.get(_TABLES[0], held.get(_TABLES[1]))  # one table, saved under either name or both
    if table is not None:
        held |= {name: held.get(name, table) for name in _TABLES if name in wanted}
    check_tensors(folder, f"{name} encoder", wanted, held)


def _made(file: Path, kind: str, config: dict[str, Any]) -> PreTrainedModel:
    """The encoder that a config.json tells of, without numbers. Raises UserError where it tells of none."""
    method = config.get("quantization_config", {})
    method = method.get("quant_method") if isinstance(method, dict) else method
    if method is not None and not (method in ("bitsandbytes", "torchao") and find_spec(method)):
        raise TextError(
            f"{file}: its weights are quantised by {method!r:.60}: install it (bitsandbytes, torchao; no other is "
            "known), or give weights that are not quantised"
        )
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    model = KINDS[kind].model
    try:
        check_values(f"{file}: ", config)
        with torch.device("meta"):
            return model(model.config_class(**config))
    except UserError:
        raise
    except Exception as error:  # transformers raises its validator's own errors, which differ by version
        raise TextError(f"{file} makes no {kind.upper()} ({brief(error)}): copy it again") from error


def check_tokenizer(folder: Path, others: bool = False) -> str | None:
    """The class of the tokenizer in a folder, as far as its files say. Raises UserError for a folder without one, and
    for one that asks for code of its own. others: those of published pipelines are taken too."""
    settings = folder / "tokenizer_config.json"
    told = read_object(settings) if settings.exists() else {}
    wanted = (*TOKENIZERS, *OTHER_TOKENIZERS) if others else TOKENIZERS
    of_bytes = others and told.get("tokenizer_class") == BYTES
    if not of_bytes and not any((folder / name).exists() for name in wanted):
        raise TextError(f"{folder} has no tokenizer ({' or '.join(wanted)}): save the tokenizer into the same folder")
    for name in (*wanted, "merges.txt", settings.name, "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists() or (folder / name).is_symlink():
            check_file(folder / name)
            if (folder / name).stat().st_size > LARGEST_TOKENIZER:
                raise TextError(f"{folder / name} is larger than any tokenizer: copy it again")
    _refuse_code(settings, told)
    longest = told.get("model_max_length")
    is_number = isinstance(longest, int | float) and not isinstance(longest, bool)
    if longest is not None and not (is_number and longest >= 1):
        raise TextError(f"{settings}: model_max_length={longest!r:.60}: must be a number of tokens, at least 1")
    found = told.get("tokenizer_class")
    if others and found is not None and str(found).removesuffix("Fast") not in TOKENIZER_CLASSES:
        raise TextError(f"{settings}: tokenizer_class={found!r:.60}: must be {', '.join(sorted(TOKENIZER_CLASSES))}")
    return found


def _refuse_code(file: Path, config: dict[str, Any]) -> None:
    """Of their own, or from the hub: kernels of attention are named as its repositories are."""
    if "auto_map" in config:
        raise TextError(f"{file}: auto_map={config['auto_map']!r:.60} asks for code of its own, which is never run")
    for key, value in config.items():
        if key in _ATTENTION and "/" in str(value):
            raise TextError(f"{file}: {key}={value!r:.60} asks for code of the hub, which is never run: remove it")
        if isinstance(value, dict):
            _refuse_code(file, value)


def hub_options(name: str) -> dict[str, bool]:
    """How to load the hub's ``name``: from the network, or from the cache when the hub does not answer.

    :class:`TextError` at once when neither has it, and for what can only be a missing folder.
    """
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or ("/" in name and Path(name).parent.is_dir()):
        raise TextError(f"text encoder folder {name} does not exist: give a transformers T5 folder or a hub name")
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # the hub's client raises its HTTP library's own errors, which differ by version
        if not _cached(name):
            raise TextError(
                f"text encoder {name} is neither a folder nor found on the hub ({str(error).strip()[:200]}): "
                "give a transformers T5 folder, or fetch it where there is a network"
            ) from error
        return {"local_files_only": True}
    return {"local_files_only": False}


def _cached(name: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # no name that the hub could have
        return False
