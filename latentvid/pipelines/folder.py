"""What a saved pipeline's folder holds, checked file by file and class by class before any of it is imported.

model_index.json names a package and a class for each part. Only those of `CLASSES` are taken, and they are imported
here, never by the names in a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..diffusion.scheduler import LatentVideoScheduler
from ..errors import UserError, brief
from ..files import inside
from ..limits import shown
from ..models.adapters.lora import adapters_in
from ..models.hub import fetch, is_name
from ..models.interchange import CLASSES as VAES
from ..models.interchange import FOREIGN, load_vae, raw_vae
from ..models.kinds import load_network
from ..models.open.folder import parts_of
from ..models.open.unet3d import UNet3D
from ..models.saved import read_arguments
from ..models.transformer import VideoDiT
from ..text import TextEncoder
from ..weights import check_folder, read_object

INDEX = "model_index.json"
SCHEDULE = "scheduler_config.json"
PIPELINE = "LatentVideoPipeline"
TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
CLASSES: dict[str, tuple[tuple[str, str], ...]] = {
    "vae": tuple(("diffusers" if cls in FOREIGN else cls.__module__, name) for name, cls in VAES.items()),
    "transformer": tuple((cls.__module__, cls.__name__) for cls in (VideoDiT, UNet3D)),
    "scheduler": ((LatentVideoScheduler.__module__, LatentVideoScheduler.__name__),),
    "text_encoder": (("transformers", "T5EncoderModel"),),
    "tokenizer": tuple(("transformers", name) for name in TOKENIZERS),
}


def located(source: str | Path) -> Path:
    """The folder of a pipeline of ours or of a published model: as it is, or, for a name on the hub (OWNER/NAME), where
    what is used of it was fetched to. Raises UserError."""
    return fetch(str(source), _wanted) if is_name(source) else Path(source)


def _wanted(index: Mapping[str, Any]) -> list[str]:
    return list(CLASSES) if _is_ours(index) else parts_of(index)


def _is_ours(index: Mapping[str, Any]) -> bool:
    found = index.get("_class_name")
    return (found[-1:] if isinstance(found, list) else [found]) == [PIPELINE]


def check_apart(networks: Iterable[nn.Module]) -> None:
    """Raises UserError where in networks that are to be saved is what has files of its own: ControlNets, adapters."""
    for network in networks:
        if len(getattr(network, "controls", ())):
            raise UserError("the pipeline has ControlNets in it: save one that was loaded without them")
        if found := adapters_in(network):
            raise UserError(
                f"the pipeline has adapters in it ({', '.join(found)}): save one that was loaded without them, and "
                "merge them into that (python -m latentvid.adapters merge)"
            )


def check_index(folder: Path, pipeline: type) -> dict[str, Any]:
    """What model_index.json sets of `pipeline`'s arguments. Raises UserError, which names the key."""
    file = folder / INDEX
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}: give another, or train one (make demo)")
    if not file.exists() and not file.is_symlink():
        usual = inside(folder, "pipeline", "the folder that training wrote")
        raise UserError(f"{folder} is not a pipeline ({INDEX} is missing): give {usual}")
    index = read_object(file)
    if not _is_ours(index):
        found = shown(index.get("_class_name"))
        raise UserError(f"{file}: _class_name={found}: must be {PIPELINE}: it is another kind of pipeline")
    for name, allowed in CLASSES.items():
        if name not in index:
            raise UserError(f"{folder} has no {name} (see {INDEX}): it is another kind of pipeline")
        if not isinstance(index[name], list) or tuple(index[name]) not in allowed:
            names = " or ".join(".".join(pair) for pair in allowed)
            raise UserError(f"{file}: {name}={shown(index[name])}: must be {names}; nothing else is imported")
        check_folder(folder / name, folder)
    arguments = read_arguments(pipeline.__init__, file)
    for key in index.keys() - arguments.keys() - CLASSES.keys():
        if isinstance(index[key], list) and not key.startswith("_"):
            raise UserError(f"{file}: {key}={shown(index[key])}: {PIPELINE} has no such part; nothing is imported")
    return {key: value for key, value in arguments.items() if key not in CLASSES}


def read_parts(folder: Path, given: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The parts of a folder whose index is checked, but for those that are given; weights in `dtype`."""
    parts = dict(given)
    if "vae" not in parts:
        parts["vae"] = _cast(raw_vae(load_vae(folder, "vae")), dtype)
    if "transformer" not in parts:
        parts["transformer"] = _cast(load_network(folder / "transformer"), dtype)
    if "scheduler" not in parts:
        parts["scheduler"] = read_scheduler(folder / "scheduler")
    if not {"text_encoder", "tokenizer"} <= parts.keys():
        text = TextEncoder.from_folders(folder / "text_encoder", folder / "tokenizer")
        parts = {"text_encoder": _cast(text.encoder, dtype), "tokenizer": text.tokenizer} | parts
    return parts


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return nn.Module.to(module, dtype)  # diffusers' own `to` warns at every change of type


def read_scheduler(folder: Path) -> LatentVideoScheduler:
    file = folder / SCHEDULE
    held = read_object(file)
    found = held.get("_class_name")
    if found != LatentVideoScheduler.__name__:
        raise UserError(f"{file}: _class_name={shown(found)}: must be {LatentVideoScheduler.__name__}")
    read_arguments(LatentVideoScheduler.__init__, file)
    try:
        return LatentVideoScheduler.from_config(held)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} makes no scheduler ({brief(error)}): copy it again") from error
