"""Which networks are made new by a configuration, and saved in pipelines of ours: the one table of `model.kind`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import nn

from ..errors import UserError
from ..limits import shown
from .open.unet3d import UNet3D
from .saved import class_name, load_component
from .transformer import VideoDiT

DIT = "dit"
FIRST, LAST = ("DownBlock3D", "UpBlock3D"), ("CrossAttnDownBlock3D", "CrossAttnUpBlock3D")
LEVELS = ("block_out_channels", (320, 640, 1280, 1280))  # of diffusers' class: ModelScope's


@dataclass(frozen=True)
class Kind:
    """cls: whose constructor takes the arguments, and as which the network is saved. backbone: made of such a network.
    prefix: of the names of its parameters in the backbone. told: arguments that the autoencoder and the text encoder
    tell, by (latent channels, text width, temporal stride). filled: with what the others leave to be understood."""

    cls: type[ModelMixin]
    backbone: Callable[[ModelMixin], nn.Module]
    told: Callable[[int, int, int], dict[str, int]]
    prefix: str = ""
    filled: Callable[[dict[str, Any]], dict[str, Any]] = dict


def _told_dit(channels: int, text: int, stride: int) -> dict[str, int]:
    return {"latent_channels": channels, "text_width": text, "temporal_stride": stride}


def _told_unet3d(channels: int, text: int, stride: int) -> dict[str, int]:
    return {"in_channels": channels, "out_channels": channels, "cross_attention_dim": text}


def _filled_unet3d(arguments: dict[str, Any]) -> dict[str, Any]:
    """With the usual parts of each level: attention in all but the last. Raises UserError for what diffusers' class
    takes, and fails at."""
    name, usual = LEVELS
    widths = arguments.get(name, usual)
    if not isinstance(widths, list | tuple) or not widths or not all(isinstance(n, int) for n in widths):
        raise UserError(f"model.{name}={shown(widths)}: must be a list of channels, one a level")
    for key in ("num_attention_heads", "time_cond_proj_dim"):
        if arguments.get(key) is not None:
            raise UserError(f"model.{key} is not of use in a UNet3DConditionModel here: leave it out")
    more = len(widths) - 1
    usual = {
        "down_block_types": (LAST[0],) * more + (FIRST[0],),
        "up_block_types": (FIRST[1],) + (LAST[1],) * more,
    }
    for (key, types), known in zip(usual.items(), zip(FIRST, LAST, strict=True), strict=True):
        types = arguments.get(key, types)
        if not isinstance(types, list | tuple) or not set(types) <= set(known):
            raise UserError(f"model.{key}={shown(types)}: must be a list of {' and '.join(known)}, one a level")
    heads = arguments.get("attention_head_dim", 64)
    if isinstance(heads, int) and not isinstance(heads, bool) and (heads < 1 or any(n % heads for n in widths)):
        raise UserError(
            f"model.attention_head_dim={heads}: the number of heads (diffusers calls it so), must divide every number "
            f"of model.{name}, {', '.join(map(str, widths))}"
        )
    return {**usual, **arguments}


KINDS: dict[str, Kind] = {
    DIT: Kind(VideoDiT, lambda network: network, _told_dit),
    "unet3d": Kind(UNet3DConditionModel, UNet3D, _told_unet3d, "raw.", _filled_unet3d),
}


def kind_of(model: Mapping[str, Any]) -> str:
    """Of the section `model` of a configuration. Raises UserError."""
    found = model.get("kind", DIT)
    if found not in KINDS:
        raise UserError(f"model.kind={shown(found)}: must be one of {', '.join(KINDS)}")
    return found


def kind_in(folder: Path) -> str:
    """Of the network saved in a folder, by its class; that of the transformer where it is of no known one."""
    name = class_name(folder, VideoDiT.__name__)
    return next((kind for kind, found in KINDS.items() if found.cls.__name__ == name), DIT)


def load_network(folder: Path) -> nn.Module:
    """The backbone saved in a folder, in eval mode. Raises UserError."""
    kind = KINDS[kind_in(folder)]
    return kind.backbone(load_component(kind.cls, folder))
