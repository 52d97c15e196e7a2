"""LTX-2's text connectors: of the hidden states of all layers of a language model they make the transformer's text."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from torch import Tensor

from ..errors import UserError, brief
from ..limits import check_values
from ..weights import check_finite, check_tensors, read_object, shapes_in, weight_files
from .folder import TextError
from .policy import Reading


def load_connectors(folder: Path, dtype: torch.dtype) -> LTX2TextConnectors:
    """Raises UserError where the folder holds no whole ones."""
    file = folder / "config.json"
    config = read_object(file)
    if config.get("_class_name") != LTX2TextConnectors.__name__:
        raise TextError(f"{file}: _class_name={config.get('_class_name')!r:.60}: must be {LTX2TextConnectors.__name__}")
    known = inspect.signature(LTX2TextConnectors.__init__).parameters
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := sorted(arguments.keys() - known.keys()):
        raise TextError(f"{file}: {unknown[0]} is unknown to this diffusers: install a newer one")
    files = weight_files(folder, "diffusion_pytorch_model")
    try:
        check_values(f"{file}: ", arguments)
        with torch.device("meta"):
            wanted = {name: tuple(t.shape) for name, t in LTX2TextConnectors(**arguments).state_dict().items()}
        check_tensors(folder, LTX2TextConnectors.__name__, wanted, shapes_in(files))
        made = LTX2TextConnectors.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=True
        )
    except UserError:
        raise
    except Exception as error:  # diffusers raises what the files lead it to
        raise TextError(f"{folder} cannot be loaded as text connectors: {brief(error, 300)}") from error
    check_finite(made, folder)
    return made


def connect(connectors: LTX2TextConnectors, states: Tensor, reading: Reading) -> Tensor:
    """Of a prompt: hidden states [n, Dt layers] of its own tokens -> the transformer's text [S,D], S `reading.tokens`.

    The class reads the published padding: it puts registers, learned tokens, in its place. Its mask is 1 for all of
    them, whether it has registers or not.
    """
    first = reading.tokens - len(states) if reading.side == "left" else 0
    padded = states.new_zeros(1, reading.tokens, states.shape[1], dtype=connectors.dtype)
    padded[0, first : first + len(states)] = states
    mask = torch.zeros(1, reading.tokens, dtype=torch.long, device=states.device)
    mask[0, first : first + len(states)] = 1
    return connectors(padded, mask, padding_side=reading.side)[0][0]
