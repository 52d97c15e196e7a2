"""Loads text encoders and tokenizers with transformers: its own classes, safetensors, nothing missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BitsAndBytesConfig, ByT5Tokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import TorchAoConfig as TorchAo

from ..errors import brief
from ..weights import check_finite
from .folder import BYTES, OTHER_TOKENIZERS, TOKENIZERS, TextError
from .kinds import KINDS


def _torchao_int8(dtype: torch.dtype) -> TorchAo:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAo(Int8WeightOnlyConfig())


# Package and settings by name.
QUANTIZATIONS: Mapping[str, tuple[str, Callable[[torch.dtype], Any]]] = {
    "bitsandbytes-8bit": ("bitsandbytes", lambda dtype: BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes-4bit": (
        "bitsandbytes",
        lambda dtype: BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
        ),
    ),
    "torchao-int8": ("torchao", _torchao_int8),
}


def check_quantization(name: str) -> None:
    """Raises TextError for one that is not known, or whose package is not there."""
    if name not in QUANTIZATIONS:
        raise TextError(f"quantization {name!r:.60}: must be {', '.join(QUANTIZATIONS)}")
    package = QUANTIZATIONS[name][0]
    if find_spec(package) is None:
        raise TextError(f"quantization {name} needs the package {package}: pip install {package}")


def load_encoder(
    source: str | Path,
    dtype: torch.dtype,
    kind: str,
    quantization: str | None = None,
    local_files_only: bool = True,
) -> PreTrainedModel:
    """The encoder of a folder whose files are checked, or of the hub; its part that reads text. Raises TextError."""
    found, options = KINDS[kind], {}
    if quantization is not None:
        options["quantization_config"] = QUANTIZATIONS[quantization][1](dtype)
    try:
        loaded, info = found.model.from_pretrained(
            str(source),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=local_files_only,
            attn_implementation="sdpa",  # torch's own, whatever the folder says
            **options,
        )
    except MemoryError:
        raise
    except Exception as error:  # transformers raises what the files lead it to
        raise TextError(f"text encoder {source} cannot be loaded as a {kind.upper()}: {brief(error, 300)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise TextError(
            f"text encoder {source} is no {kind.upper()}: its weights lack {len(missing)} tensors, e.g. {missing[0]}"
        )
    encoder = found.reader(loaded)
    if local_files_only and quantization is None:
        check_finite(encoder, Path(source))
    return encoder


def load_tokenizer(
    source: str | Path, cls: str | None = None, local_files_only: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder whose files are checked, or of the hub. Raises TextError."""
    try:
        if cls == BYTES:
            return ByT5Tokenizer.from_pretrained(str(source), local_files_only=local_files_only)
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, local_files_only=local_files_only)
    except MemoryError:
        raise
    except Exception as error:  # tokenizers raises plain ones
        there = [name for name in (*TOKENIZERS, *OTHER_TOKENIZERS) if (Path(source) / name).exists()]
        names = f"{' or '.join(there or TOKENIZERS)}, tokenizer_config.json"
        raise TextError(f"the tokenizer in {source} ({names}) cannot be loaded: {brief(error, 300)}") from error
