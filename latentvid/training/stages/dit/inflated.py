"""An image model that is made one of video: what is new in it, what may differ, and the motion module that is left.

Temporal blocks (models/temporal.py) are inserted where `model.attention` is inflated and `init` has none.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ....config.schema import DitConfig
from ....errors import UserError
from ....models.adapters.control_files import base_of
from ....models.adapters.fingerprint import fingerprint, named
from ....models.adapters.motion_files import OWN, fill_motion, read_motion, save_motion
from ....models.open import OpenBackbone
from ....models.transformer import VideoDiT
from ...checkpoint.init import Source, begin_with
from ...origin import Base, Origin
from .parts import AT_WILL, Parts, differing_from, given_of
from .seen import defaults_of

NEW = ("temporal.",)  # how the names of the parameters begin that an image model has not
FREE = ("attention", *OWN)  # arguments of which an image model knows nothing


def inflates(model: VideoDiT | OpenBackbone, source: Source | None) -> bool:
    """Whether a model has temporal blocks, and the weights that it begins with are of one that has none."""
    temporal = len(getattr(model, "temporal", ()))
    return bool(temporal) and source is not None and not any(name.startswith(NEW) for name in source.shapes)


def told_by_motion(config: DitConfig, source: Source | None, known: Collection[str]) -> dict[str, Any]:
    """The model's arguments that `init_motion` tells, where a run begins with it. known: those that are told by other
    things. Raises UserError where `model` says otherwise."""
    if config.init_motion is None or source is None:
        return {}
    told = {key: value for key, value in read_motion(config.init_motion).inflated.items() if key not in known}
    for key in told.keys() & config.model.keys():
        if config.model[key] != told[key]:
            raise UserError(
                f"model.{key} is {config.model[key]}, and init_motion was trained with {told[key]}: leave it out"
            )
    return told


def take(model: VideoDiT, source: Source, parts: Parts, config: DitConfig) -> Origin:
    """Begins with the source's weights, and the motion module's where one is named. Raises UserError for what does not
    fit."""
    new: tuple[str, ...] = ()
    differing = differing_from(source, model, parts)
    if inflates(model, source):
        new = NEW
        if (source.arguments or {}).get("attention", "full") == "full":
            differing = [said for said in differing if not said.startswith(tuple(f"model.{key} " for key in FREE))]
        differing = [*differing, *_of_clips(source)]
    origin = begin_with(model, source, differing, config.init_partial, new)
    if config.init_motion is not None:
        if not new:
            raise UserError(
                f"init_motion is put into an image model, and {source.where} has temporal blocks: leave it out"
            )
        found = read_motion(config.init_motion)
        found.check(parts.scheduler.config, parts.vae.temporal_stride, f"init_motion: {config.init_motion}")
        origin.taken += fill_motion(model, found)
        origin.where = f"{origin.where}, with {config.init_motion}"
    return origin


def check_new(model: VideoDiT | OpenBackbone, source: Source | None, config: DitConfig) -> None:
    """Raises UserError where temporal blocks are new and stay so: they change nothing, nor does what is trained in
    them. (A ControlNet is of the image model alone.) To be called once it is chosen what is trained."""
    if not inflates(model, source) or config.init_motion is not None or config.controlnet.on:
        return
    what = f"adapter.kind={config.adapter.kind}"
    if config.adapter.kind == "none":
        if any(p.requires_grad for name, p in named(model) if name.startswith(NEW)):
            return
        what = f"trainable={list(config.trainable)}"
    raise UserError(
        f"model.attention=inflated puts new temporal blocks into {source.where}, and {what} leaves them as they are, "
        "which does nothing: give a motion module by init_motion, or train them (trainable=[^temporal]), or leave "
        "model.attention out"
    )


def _of_clips(source: Source) -> list[str]:
    """Where the source saw clips, what of it would be lost, in words."""
    kinds = source.beside.get("pipeline", {}).get("trained") or ()
    longest = max((kind.get("frames", 1) for kind in kinds), default=1)
    if longest == 1:
        return []
    return [f"it was trained on clips of up to {longest} frames, and its blocks would see one frame each"]


def of_base(model: VideoDiT | OpenBackbone, source: Source | None, config: DitConfig) -> str:
    """The fingerprint of the weights that a run begins with; temporal blocks that are new are none of these."""
    return fingerprint(model, temporal=not inflates(model, source) or config.init_motion is not None)


def trains_motion(model: VideoDiT | OpenBackbone, source: Source | None) -> bool:
    """Whether temporal blocks in an image model are trained, and nothing else."""
    trained = [name for name, parameter in named(model) if parameter.requires_grad]
    return inflates(model, source) and bool(trained) and all(name.startswith(NEW) for name in trained)


def export_module(
    model: VideoDiT, config: DitConfig, base: Base, parts: Parts, seen: list[dict[str, Any]], folder: Path
) -> None:
    """The motion module, with the image model that it is of and the clips that it was trained on. seen: their kinds."""
    found = defaults_of(seen)
    clips = {key: found[key] for key in ("frames", "fps") if key in found}
    clips |= {"trained": seen, "given": list(given_of(config)), "given_shares": config.given.shares}
    if config.given.noise is not None:
        clips["given_noise"] = list(config.given.noise)
    image = base_of(model, base.where, fingerprint(model, temporal=False))
    told = {key: value for key, value in parts.scheduler.config.items() if not key.startswith("_")}
    noise = {key: value for key, value in told.items() if key not in AT_WILL}
    save_motion(model, folder, image, noise, clips)
