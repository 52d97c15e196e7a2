"""What a finished training of a published model leaves: its repository with the trained transformer."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from ....errors import UserError
from ....models.open import OpenBackbone
from ....models.open.folder import Published
from ....weights import read_object

SMALL = 2**20  # bytes: configurations and the like


def export_repository(model: OpenBackbone, published: Published, part: str, folder: Path) -> None:
    """The repository with the transformer that was trained in its place: diffusers' own pipeline loads it, with parts
    that nothing here reads, such as the sound's of LTX-2."""
    folder.mkdir(parents=True)
    index = read_object(published.folder / "model_index.json")
    parts = {name for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    for found in sorted(published.folder.rglob("*")):
        place = found.relative_to(published.folder)
        if place.parts[0] == part or place.parts[0].startswith(".") or found.is_dir():
            continue
        if place.parts[0] not in parts | published.parts.keys() and len(place.parts) > 1:
            continue  # folders that are no parts of it
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        _linked(found.resolve(), folder / place)
    model.raw.save_pretrained(folder / part)


def _linked(found: Path, place: Path) -> None:
    """Weights under another name, which needs no room; a copy where that cannot be, and of what people change."""
    try:
        if found.stat().st_size >= SMALL:
            with suppress(OSError):
                os.link(found, place)
                return
        shutil.copyfile(found, place)
    except OSError as error:
        raise UserError(f"{found} could not be copied to {place} ({error}): make room, and export again") from error
