"""A saved model's files, looked at before any library opens them: plain files, whole, with the tensors that are wanted.

Nothing is unpickled and nothing is fetched: weights are safetensors in the folder that was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .errors import UserError, brief
from .files import file_fault, leads_out, read_json
from .limits import shown

WEIGHTS = "*.safetensors"
LARGEST_JSON = 16 * 2**20
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
NAMED = 3  # tensors that a message names
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Shapes = Mapping[str, tuple[int, ...]]


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError where it holds something else, and for what is no plain file."""
    check_file(file)
    found = read_json(file, fix="copy it again", most=LARGEST_JSON)
    if not isinstance(found, dict):
        raise UserError(f"{file} holds {shown(found)} in place of a JSON object: copy it again")
    return found


def check_file(file: Path) -> None:
    """Raises UserError for what is missing, no plain file, or a link out of its folder."""
    if fault := file_fault(file, _root(file.parent)):
        raise UserError(f"{file} {fault}: put the file itself there, as training or save_pretrained wrote it")


def check_folder(folder: Path, root: Path) -> None:
    """Raises UserError unless there is such a folder, in `root`."""
    if not folder.is_dir():
        raise UserError(f"{folder} {'is missing' if not folder.exists() else 'is no folder'}: copy the model again")
    if leads_out(folder, _root(root)):
        raise UserError(f"{folder} is a link that leads out of its folder: put the folder itself there")


def _root(folder: Path) -> Path:
    """The folder in which links may end: its own; in the hub's cache, which links to its blobs, the repository's."""
    whole = folder.resolve()
    return next((at.parent for at in (whole, *whole.parents) if at.name == "snapshots"), whole)


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The whole safetensors files of weights saved under a name: STEM.safetensors, or the shards of its index.

    Raises UserError, which names the file, where one is missing, damaged, or no plain file of this folder.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.exists() and index.exists():
        raise UserError(f"{folder} has both {single.name} and {index.name}: remove the one that does not belong there")
    if _is_there(index):
        placed = read_object(index).get("weight_map")
        names = placed.values() if isinstance(placed, dict) and placed else [None]
        if not all(isinstance(name, str) and re.fullmatch(r"[^/\\]+\.safetensors", name) for name in names):
            raise UserError(f"{index}: weight_map must name a .safetensors file of this folder for each tensor")
        files = [folder / name for name in sorted(set(names))]
    elif _is_there(single):
        files = [single]
    else:
        found = next((file for pattern in PICKLES for file in sorted(folder.glob(pattern))), None)
        why = "its training or its copy is not finished"
        if found is not None:
            why = f"{found.name} can hold code that runs as it is read: convert it to safetensors"
        raise UserError(f"{folder} has no weights ({single.name}): {why}")
    for file in files:
        check_file(file)
    return files


def _is_there(file: Path) -> bool:
    return file.exists() or file.is_symlink()


def shapes_in(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in safetensors files, by their headers. Raises UserError."""
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as held:
                found |= {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{file} cannot be loaded ({brief(error)}): it is damaged or its copy is not finished; copy it again"
            ) from None
    return found


def types_in(files: Iterable[Path]) -> dict[str, torch.dtype]:
    """The type of each floating-point tensor in safetensors files, by their headers; of files that can be read."""
    found: dict[str, torch.dtype] = {}
    for file in files:
        with safe_open(file, "pt") as held:
            kinds = {name: held.get_slice(name).get_dtype() for name in held.keys()}  # noqa: SIM118
        found |= {name: FLOATS[kind] for name, kind in kinds.items() if kind in FLOATS}
    return found


def check_tensors(folder: Path, what: str, wanted: Shapes, held: Shapes) -> None:
    """Raises UserError, which names tensors, unless those held are those wanted: libraries put random numbers in
    the place of what is missing."""
    missing = sorted(wanted.keys() - held.keys())
    unexpected = sorted(held.keys() - wanted.keys())
    wrong = sorted(name for name in wanted.keys() & held.keys() if wanted[name] != held[name])
    if not (missing or unexpected or wrong):
        return
    shapes = [f"{name} is {list(held[name])}, not {list(wanted[name])}" for name in wrong]
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    said = "; ".join(f"{len(names)} {kind} ({_few(names)})" for kind, names in parts.items() if names)
    fix = "it is of another version, or its copy is not finished"
    if any("base_layer" in name or "lora_" in name for name in unexpected):
        fix = "it was saved with adapters in place: merge or unload them, and save it again"
    raise UserError(f"the weights in {folder} are not those of the {what} in its config.json: {said}: {fix}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


@torch.no_grad()
def check_finite(module: nn.Module, folder: Path) -> None:
    """Raises UserError, which names the tensor, for a weight that is nan or infinite: all that is made of it is."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise UserError(
                f"the weights in {folder} have {count:,} numbers that are nan or infinite in {name}: nothing can be "
                "made with them; copy them again, or take an earlier checkpoint"
            )
