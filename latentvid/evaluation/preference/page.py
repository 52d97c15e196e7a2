"""The page of a comparison: one HTML file with all clips in it, which knows left and right and nothing else.

Both clips of a pair are frames of one new video, so that they play in step, and neither names, nor encoders, nor sizes
of files can tell them apart. The page draws its halves on two canvases.
Axes: F frames, H W height and width in pixels.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from math import gcd
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...data.transforms import fit
from ...data.video.writing import write_video
from ...errors import UserError
from ...files import written_whole
from ...page import STYLE
from ...rng import generator
from ..rows import Clip

LIMIT = 200_000_000  # bytes of the page, about what browsers open at once and mail or chat can still carry
MOST_FPS = 120  # of a pair
_BLOCK = 16  # pixels a side of H.264's blocks: a half of the video keeps to its own
_NOISE_CELLS = 32  # of noise along the longer side


@dataclass(frozen=True)
class Shown:
    """A pair as the page holds it. video: an mp4, whose halves are each `height` x `width` at the top left."""

    video: bytes
    height: int
    width: int
    prompt: str | None


def shown(left: Clip, right: Clip) -> Shown:
    """A pair of clips as one video: its prompt is the left one's caption.

    A smaller clip is scaled up to the larger one's size, in a black frame where their shapes differ; a shorter one
    holds its last frame until the longer ends. Clips of different rates are shown at a rate that holds both.
    Raises UserError where there is no such rate up to `MOST_FPS`.
    """
    height = max(left.pixels.shape[1], right.pixels.shape[1])
    width = max(left.pixels.shape[2], right.pixels.shape[2])
    fps = common_rate(left.fps, right.fps)
    halves = [_at_rate(_in_frame(clip.pixels, height, width), clip.fps, fps) for clip in (left, right)]
    frames = max(map(len, halves))
    halves = [_padded(torch.cat([half, half[-1:].expand(frames - len(half), -1, -1, -1)])) for half in halves]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.mp4"
        write_video(path, torch.cat(halves, dim=2), float(fps))
        return Shown(path.read_bytes(), height, width, left.caption)


def common_rate(a: float, b: float) -> Fraction:
    """The least rate of which both rates (frames per second) are a whole part. Raises UserError above `MOST_FPS`."""
    first, second = (Fraction(rate).limit_denominator(1001) for rate in (a, b))
    over = first.denominator * second.denominator
    left, right = first.numerator * second.denominator, second.numerator * first.denominator
    rate = Fraction(left * right // gcd(left, right), over)
    if rate > max(MOST_FPS, a, b):
        raise UserError(f"clips at {a:g} and {b:g} frames per second cannot be shown in step: write them at one rate")
    return rate


def noise_like(clip: Clip, seed: int, number: int) -> Clip:
    """A still picture of noise of the clip's size, length and caption: noise that moves would flicker."""
    frames, height, width, _ = clip.pixels.shape
    cell = -(-max(height, width) // _NOISE_CELLS)
    cells = (-(-height // cell), -(-width // cell), 3)
    picture = torch.randint(256, cells, dtype=torch.uint8, generator=generator(seed, number, "compare noise"))
    picture = picture.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:height, :width]
    return Clip(picture.expand(frames, -1, -1, -1), clip.fps, clip.caption)


def _in_frame(pixels: Tensor, height: int, width: int) -> Tensor:
    """uint8 [F,h,w,3] -> [F,H,W,3]: scaled to fit, in the middle of black."""
    scale = min(height / pixels.shape[1], width / pixels.shape[2])
    inside = fit(pixels, round(scale * pixels.shape[1]), round(scale * pixels.shape[2]))
    down, across = height - inside.shape[1], width - inside.shape[2]
    return pad(inside, (0, 0, across // 2, across - across // 2, down // 2, down - down // 2))


def _at_rate(pixels: Tensor, fps: float, rate: Fraction) -> Tensor:
    return pixels.repeat_interleave(round(float(rate) / fps), 0)


def _padded(pixels: Tensor) -> Tensor:
    """Sides made multiples of `_BLOCK` by repeating the last row and column, which are not shown."""
    for axis in (1, 2):
        last = pixels.narrow(axis, pixels.shape[axis] - 1, 1)
        pixels = torch.cat([pixels, last.repeat_interleave(-pixels.shape[axis] % _BLOCK, axis)], dim=axis)
    return pixels


def base64_size(pairs: Iterable[Shown]) -> int:
    return sum(-(-len(pair.video) // 3) * 4 for pair in pairs)


def write_page(path: Path, page: str, questions: Sequence[str], pairs: Sequence[Shown]) -> None:
    """page: the key's hash, which the choices will carry."""
    about = {
        "id": page,
        "questions": list(questions),
        "pairs": [{"prompt": pair.prompt, "height": pair.height, "width": pair.width} for pair in pairs],
    }
    head, tail = files(__package__).joinpath("page.html").read_text(encoding="utf-8").split("{{clips}}")
    words = json.dumps(about, ensure_ascii=False).replace("<", "\\u003c")  # a prompt must not end the script
    with written_whole(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write(head.replace("{{style}}", STYLE).replace("{{page}}", words))
        for number, pair in enumerate(pairs, 1):
            data = base64.b64encode(pair.video).decode()
            file.write(f'<script type="text/plain" id="clip-{number}">data:video/mp4;base64,{data}</script>\n')
        file.write(tail)
