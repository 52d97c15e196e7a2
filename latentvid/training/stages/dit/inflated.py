"""An image model that is made one of video: what is new in it, what may differ, and the motion module that is left.

Temporal blocks (models/temporal.py) are inserted where `model.attention` is inflated and `init` has none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
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
from .parts import Parts, given_of
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


def take(model: VideoDiT, source: Source, differing: Sequence[str], config: DitConfig) -> Origin:
    """Begins with the source's weights, and the motion module's where one is named. differing: in words, as
    `parts.differing_from` has it. Raises UserError for what does not fit."""
    new: tuple[str, ...] = ()
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
        origin.taken += fill_motion(model, read_motion(config.init_motion))
        origin.where = f"{origin.where}, with {config.init_motion}"
    return origin


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
    clips |= {"trained": seen, "given": list(given_of(config)), "given_shares": asdict(config.given)}
    image = base_of(model, base.where, fingerprint(model, temporal=False))
    noise = {key: parts.scheduler.config[key] for key in ("path", "target")}
    save_motion(model, folder, image, noise, clips)
