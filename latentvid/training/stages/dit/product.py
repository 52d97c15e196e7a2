"""What a finished training leaves: a pipeline, a published repository with the trained transformer, or a control
branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....config.schema import DitConfig
from ....diffusion.scheduler import LatentVideoScheduler
from ....models.adapters.control_files import PARTS, base_of, save_control
from ....models.open import OpenBackbone
from ....models.open.animatediff import SCHEDULER, AnimateDiff
from ....models.open.folder import Published, copy_repository
from ....models.transformer import VideoDiT
from ....pipelines.latent_video import LatentVideoPipeline
from ....references import as_json, read_roles
from ....words import counted
from ...checkpoint.init import Source
from ...origin import Base
from .parts import roles_of
from .published import part_of
from .seen import defaults_of


def export_repository(model: OpenBackbone, published: Published, part: str, folder: Path) -> None:
    """The repository with the transformer that was trained in its place: diffusers' own pipeline loads it."""
    copy_repository(published, folder, without=(part,))
    model.raw.save_pretrained(folder / part)


def export_pipeline(
    pipeline: LatentVideoPipeline, config: DitConfig, begun: Source | None, seen: list[dict[str, Any]], folder: Path
) -> None:
    """The pipeline, which makes by default what it was trained on. begun: as in `kept_roles`. seen: kinds of clips."""
    pipeline.register_to_config(
        **kept_roles(config, begun),
        **defaults_of(seen),
        **config.sampled(config.inference.steps, config.inference.guidance),
        trained=seen or None,
        given_shares=config.given.shares,
    )
    pipeline.save_pretrained(folder, samples=_newest_look(config.run.dir / "samples"))


def _newest_look(folder: Path) -> list[Path]:
    """The last sheet of the averaged weights' samples that training left, if any."""
    return sorted(folder.glob("step-*-ema.png"))[-1:]


def kept_roles(config: DitConfig, begun: Source | None) -> dict[str, Any]:
    """`references` of a pipeline that stays near the one that it began with, in roles that it was not trained in again:
    those of that one. begun: None where the run does not look at it any more."""
    if begun is None or config.data.references or not config.keeps_base or config.student is not None:
        return {}
    return {"references": as_json(read_roles(begun.beside.get("pipeline", {}).get("references"), begun.where))}


def notes_of_student(config: DitConfig, begun: Source | None) -> list[str]:
    """What is to be said at the start of a run that begins with a distilled model and leaves none, a line each."""
    beside = config.adapter.kind != "none" or config.controlnet.on  # which the distilled model takes as it is
    if begun is None or beside or config.student is not None or not begun.beside.get("pipeline", {}).get("student"):
        return []
    return [
        f"warning: {begun.where} is of a distilled model, and what this run leaves is none: it is sampled in "
        f"{counted(config.inference.steps, 'step')} with guidance {config.inference.guidance:g} (inference.steps, "
        "inference.guidance; 1 is without a second pass)"
    ]


def export_motion(model: AnimateDiff, scheduler: LatentVideoScheduler, folder: Path) -> None:
    """The motion modules as a `MotionAdapter` of diffusers, with the noise that they were trained on beside it."""
    model.save_motion(folder)
    scheduler.save_pretrained(folder / SCHEDULER)


def export_branch(
    model: VideoDiT | OpenBackbone, config: DitConfig, base: Base, published: Published | None, folder: Path
) -> None:
    """The control branch, with the role of its signal and which model it is of."""
    ((role, reference),) = roles_of(config).items()
    part = PARTS[0] if published is None else part_of(config, published)
    save_control(model, folder, role, reference, base_of(model, base.where, base.fingerprint), part)
