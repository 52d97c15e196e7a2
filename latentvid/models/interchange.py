"""The choice of a VAE, ours or one of diffusers', by a class name.

What the rest of the package asks of any of them: `temporal_stride`, `spatial_stride`, `latent_channels`; `latent_grid`;
`encode(x).latent_dist`, `decode(z).sample`; `normalise`, `denormalise` and `set_statistics`; for training
`forward(x, noise)`; `encoder`, `decoder`, `config`, `save_pretrained`. `CausalVideoAutoencoder` has them itself; the
adapters of diffusers_vae/ give them to the classes of diffusers. Files keep diffusers' format: an adapter saves and
loads what diffusers does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import AutoencoderKLHunyuanVideo15
from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from diffusers.models.autoencoders.autoencoder_kl_mochi import AutoencoderKLMochi
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..errors import UserError
from ..limits import check_arguments
from .autoencoder import CausalVideoAutoencoder
from .building import check_memory
from .diffusers_vae import (
    CogVideoXVae,
    DiffusersVae,
    HunyuanVideo15Vae,
    HunyuanVideoVae,
    ImageVae,
    LTX2VideoVae,
    LTXVideoVae,
    MochiVae,
    TemporalDecoderVae,
    WanVae,
)
from .hub import located_part
from .pixels import PIXELS, PixelCodec
from .saved import class_name, load_component

Vae = CausalVideoAutoencoder | DiffusersVae | PixelCodec
OURS = CausalVideoAutoencoder.__name__
FOREIGN: dict[type[ModelMixin], type[DiffusersVae]] = {
    AutoencoderKLWan: WanVae,
    AutoencoderKLCogVideoX: CogVideoXVae,
    AutoencoderKLLTXVideo: LTXVideoVae,
    AutoencoderKLLTX2Video: LTX2VideoVae,
    AutoencoderKLHunyuanVideo: HunyuanVideoVae,
    AutoencoderKLHunyuanVideo15: HunyuanVideo15Vae,
    AutoencoderKLMochi: MochiVae,
    AutoencoderKL: ImageVae,
    AutoencoderKLTemporalDecoder: TemporalDecoderVae,
}
CLASSES = {cls.__name__: cls for cls in (CausalVideoAutoencoder, PixelCodec, *FOREIGN)}


def as_vae(module: nn.Module) -> Vae:
    """The module with the VAE's interface: ours as it is, one of diffusers' in its adapter (over the same weights)."""
    if isinstance(module, Vae):
        return module
    if type(module) not in FOREIGN:
        raise UserError(f"a {type(module).__name__} is not a VAE that latentvid knows ({', '.join(CLASSES)})")
    return FOREIGN[type(module)](module)


def raw_vae(vae: nn.Module) -> nn.Module:
    """What diffusers may save and register: ours as it is, diffusers' own module of an adapter."""
    return vae.raw if isinstance(vae, DiffusersVae) else vae


def build_vae(arguments: Mapping[str, Any], section: str) -> Vae:
    """A new VAE: of the class in `_class_name` (ours where it is absent), with the other arguments.

    Raises UserError, which names the section, for an unknown class and for arguments that its class does not take.
    """
    arguments = dict(arguments)
    name = arguments.pop("_class_name", OURS)
    if name not in CLASSES:
        raise UserError(f"{section}._class_name {name!r} is unknown: one of {', '.join(CLASSES)}")
    check_arguments(CLASSES[name].__init__, arguments, section)
    if name == OURS:
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    try:
        check_memory(CLASSES[name], arguments, section)
        return as_vae(CLASSES[name](**arguments))
    except UserError:
        raise
    except (TypeError, ValueError, IndexError, AssertionError, RuntimeError) as error:
        raise UserError(f"{section}: {name}: {' '.join(str(error).split()) or type(error).__name__}") from error


def arguments_of(vae: Vae) -> dict[str, Any]:
    """What `build_vae` makes another such VAE of."""
    raw = raw_vae(vae)
    own = {key: value for key, value in raw.config.items() if not key.startswith("_")}
    return own if isinstance(raw, CausalVideoAutoencoder) else {"_class_name": type(raw).__name__, **own}


def load_vae(folder: str | Path, subfolder: str | None = None) -> Vae:
    """The VAE in a folder in diffusers' format (or in its `subfolder`), in eval mode, whichever class it is of; or that
    of a repository on the hub, by its name; or the word "pixels": none.

    Raises UserError for a class that is not known, and for missing, damaged or foreign weights.
    """
    if subfolder is None and str(folder) == PIXELS:
        return PixelCodec().eval()
    folder = located_part(folder, "vae", "a VAE's folder") if subfolder is None else Path(folder) / subfolder
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        raise UserError(f"{folder} is a whole pipeline: give its VAE, {folder / 'vae'}")
    name = class_name(folder, "VAE")
    if name not in CLASSES:
        raise UserError(f"{folder} holds a {name}, not a VAE that latentvid knows ({', '.join(CLASSES)})")
    return as_vae(load_component(CLASSES[name], folder)).eval()


def channels_last(module: nn.Module) -> nn.Module:
    """Lays the convolutions' weights out with their channels last, in place; what oneDNN and cuDNN run fastest on."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return module
