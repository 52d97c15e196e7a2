"""Contact sheets: rows of frames with text beside."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """A row of a sheet: clips uint8 [F,H,W,3] one above the other, text beside, and a green or red mark (or none)."""

    clips: list[Tensor]
    text: str
    right: bool | None = None


def draw_sheet(rows: Sequence[Row], path: Path, *, columns: int = 6, zoom: int = 4) -> None:
    """Writes a PNG: for each clip `columns` evenly spaced frames, magnified `zoom` times without smoothing."""
    gap, margin, text_width = 4, 16, 290
    ground, ink, green, red = (38, 41, 48), (235, 235, 235), (70, 190, 90), (230, 75, 70)
    font = ImageFont.load_default(19)

    def strip(clip: Tensor) -> Tensor:  # [H',W',3]
        picks = torch.linspace(0, len(clip) - 1, min(columns, len(clip))).round().long()
        large = clip[picks].repeat_interleave(zoom, dim=1).repeat_interleave(zoom, dim=2)  # [columns,H*zoom,W*zoom,3]
        spacer = torch.tensor(ground, dtype=torch.uint8).expand(large.shape[1], gap, 3)
        return torch.cat([part for frame in large for part in (frame, spacer)], dim=1)

    strips = [[strip(clip) for clip in row.clips] for row in rows]
    heights = [sum(len(s) + gap for s in row) for row in strips]
    width = text_width + max(s.shape[1] for row in strips for s in row) + margin
    image = Image.new("RGB", (width, sum(heights) + margin * (len(rows) + 1)), ground)
    draw = ImageDraw.Draw(image)
    top = margin
    for row, pictures, height in zip(rows, strips, heights, strict=True):
        place = top
        for picture in pictures:
            image.paste(Image.fromarray(picture.numpy()), (text_width, place))
            place += len(picture) + gap
        lines = [part for line in row.text.split("\n") for part in textwrap.wrap(line, 22, break_on_hyphens=False)]
        middle = top + height / 2
        draw.multiline_text((margin + 24, middle), "\n".join(lines), fill=ink, font=font, anchor="lm", spacing=6)
        if row.right is not None:
            draw.ellipse((margin, middle - 7, margin + 14, middle + 7), fill=green if row.right else red)
        top += height + margin
    image.save(path)
