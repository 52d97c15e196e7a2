"""Which weights a transformer begins with, and which of them are trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import check_parts

if TYPE_CHECKING:
    from .schema import DitConfig

# keys of `model` beside the arguments of `VideoDiT`: (type, what it is)
KIND = {
    "kind": (
        "'dit' | 'unet3d'",
        "the network; of unet3d the others are arguments of diffusers' UNet3DConditionModel (docs/unets.md)",
    )
}
PUBLISHED = {  # of a published one
    "from": (
        "str",
        "folder or hub name of a published model, instead of the others; it tells what is not set of vae, "
        "text_encoder, scheduler, timesteps, given and inference",
    ),
    "dtype": ("'fp32' | 'bf16'", "type of a published model's weights; bf16 where they stay as they are"),
    "motion": (
        "str | mapping",
        "of Stable Diffusion: folder of a MotionAdapter of diffusers to train, or {} and arguments of a new one",
    ),
    "expert": ("'high' | 'low'", "which of a published model's two transformers is trained, by noise levels"),
}


def check_model(config: DitConfig) -> None:
    """Raises ValueError where these, or what is trained, are said twice, not at all, or not so that they can be."""
    if "from" not in config.model and (alone := [key for key in PUBLISHED if key in config.model]):
        raise ValueError(f"model.{alone[0]} is of a published model: give model.from, or leave it out")
    if "from" in config.model:
        if others := sorted(config.model.keys() - PUBLISHED.keys()):
            raise ValueError(f"model.{others[0]} is that of the model which model.from names: leave it out")
        if config.inference.guidance_interval is not None:
            raise ValueError(
                "inference.guidance_interval has no place in a published model's repository: leave it out, and sample "
                "with --guidance-interval"
            )
        if config.init is not None:
            raise ValueError("model.from and init both name the weights to begin with: leave one out")
        if not (isinstance(config.model["from"], str) and config.model["from"]):
            raise ValueError(f"model.from={config.model['from']!r}: give a folder or a hub name")
        motion = config.model.get("motion")
        if motion is not None and not (isinstance(motion, str) and motion or isinstance(motion, dict)):
            raise ValueError(f"model.motion={motion!r}: give a MotionAdapter's folder, or {{}} for a new one")
        if motion is not None and config.trainable:
            raise ValueError("model.motion is trained alone, or stays where adapter.kind is set: leave trainable out")
        if isinstance(motion, dict) and config.adapter.kind != "none":
            raise ValueError(
                f"model.motion={motion} is of new motion modules, and adapter.kind={config.adapter.kind} leaves them "
                "as they are, which does nothing: give the folder of a MotionAdapter, or leave model.motion out"
            )
        if motion is not None and config.prior.wanted:
            raise ValueError("prior makes clips by the model as it is, and with model.motion that makes pictures")
        for key, allowed in (("dtype", ("fp32", "bf16")), ("expert", ("high", "low"))):
            if config.model.get(key, allowed[0]) not in allowed:
                raise ValueError(f"model.{key}={config.model[key]!r}: one of {', '.join(allowed)}")
        if config.model.get("dtype") == "bf16" and config.adapter.kind == "none" and not config.controlnet.on:
            raise ValueError("model.dtype=bf16 is of weights that are not trained: set adapter.kind=lora, or fp32")
    else:
        if config.text.told:
            raise ValueError("text is of a published model's text encoders: set model.from, or leave it out")
        for name, value in (("vae", config.vae), ("text_encoder", config.text_encoder)):
            if value is None:
                raise ValueError(f"{name} is required: set it in the YAML file or with --{name}=VALUE, or model.from")
    for name, value in (("text_encoder", config.text_encoder), ("model.from", config.model.get("from"))):
        if value is not None:
            check_parts(Path(value), name)
    if config.adapter.kind != "none" and config.trainable:
        raise ValueError("trainable and adapter both say what is trained: leave one out")
    if (config.adapter.kind != "none" or config.trainable) and "from" not in config.model and config.init is None:
        what = "trainable" if config.trainable else f"adapter.kind={config.adapter.kind}"
        raise ValueError(f"{what} leaves the rest of the model as it is: give its weights by init or model.from")
    if config.init_motion is not None and config.init is None:
        raise ValueError("init_motion is put into an image model of ours: give its weights by init, or leave it out")
    if config.keeps_base and config.init_partial:
        raise ValueError("init_partial leaves some weights new, and the rest is to stay as it is: leave one out")
    for pattern in config.trainable:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"trainable: {pattern!r} is no regular expression: {error}") from None
