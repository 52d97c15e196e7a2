"""A control branch as a folder of its own: config.json, and the weights under the name that diffusers gives them.

config.json: `every`; of the model that it was trained on the `family` and shape (`blocks`, `in_features`, `width`),
its place in a pipeline (`part`) and identity (`base`); and the role in which it is shown its signal (`reference`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...errors import UserError
from ...files import follow_umask, inside, written_whole
from ...limits import check, shown
from ...packing import patch_size
from ...references import Role, read_roles
from ...weights import check_finite, check_tensors, read_object, shapes_in, weight_files
from ..control import ControlBranch, Reads
from ..saved import STEM
from .fingerprint import fingerprint
from .lora import adapters_in

NAME = "ControlBranch"  # `_class_name` of config.json
PARTS = ("transformer", "transformer_2")  # of a pipeline


@dataclass(frozen=True)
class ControlFolder:
    """What config.json says. role: the role's name. base: where the model was that it was trained on, and its
    fingerprint and type."""

    folder: Path
    every: int
    part: str
    shape: Mapping[str, Any]
    role: str
    reference: Role
    base: Mapping[str, str]


def shape_of(model: nn.Module, every: int) -> dict[str, Any]:
    """What tells for which models a branch is."""
    return {
        "family": getattr(model, "family", "video_dit"),
        "blocks": len(range(0, len(model.blocks), every)),
        "in_features": model.latent_channels * patch_size(model.patch),
        "width": model.width,
    }


def base_of(model: nn.Module, where: str, mark: str | None = None) -> dict[str, str]:
    """Which model it is. mark: its fingerprint, where it is known."""
    return {"where": where, "fingerprint": mark or fingerprint(model), "dtype": str(model.dtype).removeprefix("torch.")}


def save_control(
    model: nn.Module, folder: str | Path, role: str, reference: Role, base: Mapping[str, str], part: str = PARTS[0]
) -> None:
    """Writes the one branch of a model. base: as `base_of` makes it."""
    (branch,) = model.controls
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in branch.state_dict().items()}
    with written_whole(folder / f"{STEM}.safetensors") as beside:
        save_file(tensors, beside, metadata={"format": "pt"})
    config = {"_class_name": NAME, "every": branch.every, "part": part, **shape_of(model, branch.every)}
    config |= {"reference": {"role": role, **reference.as_json()}, "base": dict(base)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    follow_umask(folder)


def read_control(folder: str | Path) -> ControlFolder:
    """What a folder says of its branch. Raises UserError where it holds none."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        usual = inside(folder, "controlnet", "the folder that training wrote")
        raise UserError(f"{folder} holds no ControlNet (config.json is missing): give {usual}")
    config = read_object(folder / "config.json")
    if (name := config.get("_class_name")) != NAME:
        raise UserError(f"{folder} holds a {shown(name)}, not a {NAME}: give the folder that training wrote")
    try:
        reference = dict(config["reference"])
        role = reference.pop("role")
        roles = read_roles({role: reference}, str(folder))
        shape = {key: config[key] for key in ("family", "blocks", "in_features", "width")}
        every, part, base = check("controlnet.every", config["every"]), config["part"], dict(config["base"])
        if part not in PARTS or not isinstance(role, str):
            raise ValueError(f"part={shown(part)}, role={shown(role)}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} says no ControlNet ({error}): copy it again") from None
    return ControlFolder(folder, every, part, shape, role, roles[role], base)


@torch.no_grad()
def load_control(
    model: nn.Module, folder: str | Path, scale: float = 1.0, start: float = 0.0, end: float = 1.0
) -> ControlBranch:
    """Puts a saved branch beside a model's blocks, on their device and in the model's type, and returns it.

    scale, start, end: as in `Reads`. Raises UserError for a folder that holds none, or one of another kind of model.
    """
    found = read_control(folder)
    branch = branch_of(model, found, Reads(found.role, scale, start, end))
    model.controls.append(branch.to(model.dtype).requires_grad_(False).eval())
    return branch


@torch.no_grad()
def branch_of(model: nn.Module, found: ControlFolder, reads: Reads) -> ControlBranch:
    """A saved branch for a model, in fp32 and to be trained. Raises UserError for one of another kind of model."""
    if adapters_in(model):
        raise UserError(f"{found.folder}: the model has adapters: put control branches in before them, or merge them")
    here = shape_of(model, found.every)
    if differing := [
        f"{key} {shown(found.shape[key])}, not {shown(here[key])}" for key in here if found.shape[key] != here[key]
    ]:
        raise UserError(f"{found.folder} is of another model ({'; '.join(differing)}): load it beside that one")
    files = weight_files(found.folder, STEM)
    branch = ControlBranch(model, found.every, reads)
    wanted = {name: tuple(tensor.shape) for name, tensor in branch.state_dict().items()}
    check_tensors(found.folder, NAME, wanted, shapes_in(files))
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    branch.load_state_dict(tensors)
    check_finite(branch, found.folder)
    return branch


def is_its_base(model: nn.Module, found: ControlFolder) -> bool:
    """Whether a model has the weights that a branch was trained on, as far as can be told: of weights in another type
    nothing is known."""
    return is_of(model, found.base)


def is_of(model: nn.Module, base: Mapping[str, str]) -> bool:
    """Whether a model has the weights that `base_of` told of, with its temporal blocks or without; what is there of
    another type may be them."""
    if base.get("dtype") != str(model.dtype).removeprefix("torch."):
        return True
    return any(base.get("fingerprint") == fingerprint(model, temporal) for temporal in (True, False))
