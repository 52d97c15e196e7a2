"""What a finished training leaves: a published repository with the trained transformer, or a control branch."""

from __future__ import annotations

from pathlib import Path

from ....config.schema import DitConfig
from ....models.adapters.control_files import PARTS, base_of, save_control
from ....models.open import OpenBackbone
from ....models.open.folder import Published, copy_repository
from ....models.transformer import VideoDiT
from ...origin import Base
from .parts import roles_of
from .published import part_of


def export_repository(model: OpenBackbone, published: Published, part: str, folder: Path) -> None:
    """The repository with the transformer that was trained in its place: diffusers' own pipeline loads it."""
    copy_repository(published, folder, without=(part,))
    model.raw.save_pretrained(folder / part)


def export_branch(
    model: VideoDiT | OpenBackbone, config: DitConfig, base: Base, published: Published | None, folder: Path
) -> None:
    """The control branch, with the role of its signal and which model it is of."""
    ((role, reference),) = roles_of(config).items()
    part = PARTS[0] if published is None else part_of(config, published)
    save_control(model, folder, role, reference, base_of(model, base.where, base.fingerprint), part)
