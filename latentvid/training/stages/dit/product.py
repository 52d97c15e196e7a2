"""What a finished training of a published model leaves: its repository with the trained transformer."""

from __future__ import annotations

from pathlib import Path

from ....models.open import OpenBackbone
from ....models.open.folder import Published, copy_repository


def export_repository(model: OpenBackbone, published: Published, part: str, folder: Path) -> None:
    """The repository with the transformer that was trained in its place: diffusers' own pipeline loads it."""
    copy_repository(published, folder, without=(part,))
    model.raw.save_pretrained(folder / part)
