"""A motion module as a folder of its own: the temporal blocks of an inflated model, apart from the image model.

Its weights lie under the name that diffusers gives them. config.json: of the image model that it was trained on the
shape (`depth`, `width`, `heads`, `mlp_ratio`, `rope_theta`) and identity (`base`); its own arguments
(`temporal_every`, `rope_fps`, `temporal_stride`); the scheduler's path, target and their numbers (`noise`); and the
clips that it was trained on (`clips`).
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
from ...files import follow_umask, written_whole
from ...limits import check_arguments, shown
from ...weights import check_finite, check_tensors, read_object, shapes_in, weight_files
from ..saved import STEM
from ..temporal import TemporalBlock, temporal_count
from ..transformer import VideoDiT
from .control_files import is_of
from .lora import adapters_in

NAME = "MotionModule"  # `_class_name` of config.json
SHAPE = ("depth", "width", "heads", "mlp_ratio", "rope_theta")  # that the image model must have too
OWN = ("temporal_every", "rope_fps", "temporal_stride")  # of time, of which the image model knows nothing


@dataclass(frozen=True)
class MotionFolder:
    """What config.json says. arguments: of `VideoDiT`, `SHAPE` and `OWN`. base: as `control_files.base_of` has it.
    noise: `path`, `target` and all else of the scheduler that a model must share. clips: what the module was trained
    on, as arguments of a pipeline."""

    folder: Path
    arguments: Mapping[str, Any]
    base: Mapping[str, str]
    noise: Mapping[str, Any]
    clips: Mapping[str, Any]

    def check(self, noise: Mapping[str, Any], stride: int, option: str) -> None:
        """Raises UserError for a model of another noise (a scheduler's arguments), or an autoencoder that folds another
        number of frames. option: by which the folder was named."""
        differing = [key for key, value in self.noise.items() if key in noise and noise[key] != value]
        if differing:
            told, own = ({key: of[key] for key in differing} for of in (self.noise, noise))
            raise UserError(f"{option} was trained with the noise of {told}, and this model with {own}: take another")
        if self.arguments["temporal_stride"] != stride:
            raise UserError(
                f"{option} is for latent frames of {self.arguments['temporal_stride']} frames, and this model's are of "
                f"{stride}: give a module that was trained with its VAE"
            )

    @property
    def inflated(self) -> dict[str, Any]:
        """The arguments by which an image model becomes one with these temporal blocks."""
        return {"attention": "inflated", **{key: self.arguments[key] for key in OWN}}


def save_motion(
    model: VideoDiT, folder: str | Path, base: Mapping[str, str], noise: Mapping[str, str], clips: Mapping[str, Any]
) -> None:
    """Writes the temporal blocks of an inflated model. base: the image model, as `base_of` makes it; the rest: as in
    `MotionFolder`."""
    if not len(model.temporal):
        raise UserError(f"the model has no temporal blocks to save (its attention is {model.config.attention})")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in model.temporal.state_dict().items()}
    with written_whole(folder / f"{STEM}.safetensors") as beside:
        save_file({f"temporal.{name}": tensor for name, tensor in tensors.items()}, beside, metadata={"format": "pt"})
    config = {"_class_name": NAME, **{key: model.config[key] for key in (*SHAPE, *OWN)}}
    config |= {"base": dict(base), "noise": dict(noise), "clips": dict(clips)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    follow_umask(folder)


def read_motion(folder: str | Path) -> MotionFolder:
    """What a folder says of its motion module. Raises UserError where it holds none."""
    folder = Path(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} holds no motion module (config.json is missing): give the folder of training")
    config = read_object(file)
    if (name := config.get("_class_name")) != NAME:
        raise UserError(f"{folder} holds a {shown(name)}, not a {NAME}: give the folder that training wrote")
    try:
        arguments = {key: config[key] for key in (*SHAPE, *OWN)}
        base, noise, clips = (dict(config[key]) for key in ("base", "noise", "clips"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} says no motion module ({error}): copy it again") from None
    check_arguments(VideoDiT.__init__, arguments, f"{file}: ")
    return MotionFolder(folder, arguments, base, noise, clips)


@torch.no_grad()
def load_motion(model: VideoDiT, folder: str | Path) -> MotionFolder:
    """Inserts a saved module's temporal blocks into an image model, on its device and in its type; the model is an
    inflated one afterwards, and is saved as such.

    Raises UserError for a folder that holds none, and for a model that it does not fit.
    """
    found = read_motion(folder)
    if not isinstance(model, VideoDiT):
        raise UserError(f"{folder} is of a VideoDiT of latentvid, and this model is a {type(model).__name__}")
    if len(model.temporal):
        raise UserError(f"{folder}: the model has temporal blocks already: give the image model, without them")
    if model.config.attention != "full":
        raise UserError(
            f"{folder} is put into image models of attention full, and this one's is {model.config.attention}: give one"
            " of images"
        )
    if adapters_in(model) or len(model.controls):
        raise UserError(f"{folder}: the model has adapters or control branches: put the motion module in before them")
    _check_shape(model, found)
    config, like = model.config, next(model.blocks[0].parameters())
    count = temporal_count("inflated", config.depth, found.arguments["temporal_every"])
    blocks = nn.ModuleList(TemporalBlock(config.width, config.heads, config.mlp_ratio) for _ in range(count))
    _fill(blocks, found)
    model.temporal = blocks.to(like.device, like.dtype).train(model.training).requires_grad_(False)
    model.register_to_config(**found.inflated)
    return found


@torch.no_grad()
def fill_motion(model: VideoDiT, found: MotionFolder) -> int:
    """A saved module's weights for the temporal blocks of an inflated model; how many numbers. Raises UserError."""
    _check_shape(model, found)
    _fill(model.temporal, found)
    return sum(p.numel() for p in model.temporal.parameters())


def _check_shape(model: VideoDiT, found: MotionFolder) -> None:
    if differing := [
        f"{key} {shown(found.arguments[key])}, not {shown(model.config[key])}"
        for key in SHAPE
        if found.arguments[key] != model.config[key]
    ]:
        raise UserError(
            f"{found.folder} is of another model ({'; '.join(differing)}): give an image model like its own"
        )


def _fill(blocks: nn.ModuleList, found: MotionFolder) -> None:
    files = weight_files(found.folder, STEM)
    wanted = {f"temporal.{name}": tuple(tensor.shape) for name, tensor in blocks.state_dict().items()}
    check_tensors(found.folder, NAME, wanted, shapes_in(files))
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    blocks.load_state_dict({name.removeprefix("temporal."): tensor for name, tensor in tensors.items()})
    check_finite(blocks, found.folder)


def is_its_image_model(model: VideoDiT, found: MotionFolder) -> bool:
    """Whether a model has the image model's weights that a module was trained on, as far as can be told."""
    return is_of(model, found.base)
