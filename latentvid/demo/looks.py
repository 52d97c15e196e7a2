"""Looks of the demo's digits: clips of digits drawn in other ways, each with a picture of another digit in its look.

    python -m latentvid.demo.looks OUT [--looks striped --clips 3000 --seed 0]

The captions say nothing of looks: a model learns one look by heart, or reads it from the picture that it is shown.
Axis letters: F H W frames, height, width; N glyphs.
"""

if __name__ == "__main__":  # before torch is imported: --help and wrong options are answered at once
    from ..commands import looks

    looks()
    raise SystemExit

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..data.video.writing import write_video
from ..errors import UserError
from ..files import write_whole
from .digits import (
    COLOURS,
    FPS,
    GLYPH,
    SEEN_PAIRS,
    SIZES,
    VERBS,
    Label,
    caption,
    free_range,
    glyphs,
    paint,
    trajectory,
)
from .judge import Judge, train

FRAMES = 17
PICTURE = SIZES[0]  # of a picture that shows a look


def _thick(glyph: Tensor) -> Tensor:
    return nnf.max_pool2d(nnf.pad(glyph[:, None], (1,) * 4), 3, 1)[:, 0]


def _shadow(glyph: Tensor) -> Tensor:
    return torch.maximum(glyph, 0.45 * nnf.pad(glyph, (3, 0, 3, 0))[:, :GLYPH, :GLYPH])


_PLACE = torch.arange(GLYPH)
_BAR = (_PLACE // 2) % 2 == 0  # every other pair of pixels
LOOKS: dict[str, Callable[[Tensor], Tensor]] = {  # glyphs [N,16,16] in 0..1 -> the same
    "plain": lambda glyph: glyph,
    "striped": lambda glyph: glyph * torch.where(_BAR, 1.0, 0.15)[:, None],
    "shadow": _shadow,
    "half": lambda glyph: glyph * torch.where(_PLACE < GLYPH // 2, 1.0, 0.4)[:, None],
    "columns": lambda glyph: glyph * torch.where(_BAR, 1.0, 0.1),
    "thick": _thick,
}


def in_look(glyph: Tensor, name: str) -> Tensor:
    """A glyph [16,16], or glyphs [N,16,16], drawn so. Raises UserError for a name that LOOKS has not."""
    if name not in LOOKS:
        raise UserError(f"look {name!r}: choose among {', '.join(LOOKS)}")
    return LOOKS[name](glyph.reshape(-1, GLYPH, GLYPH)).reshape(glyph.shape)


def judge_of(file: Path, steps: int, seed: int = 0) -> Judge:
    """One that reads digit and look together, its class is `10 * look + digit`; trained where `file` is not there."""
    if not file.exists():
        more = []
        for heldout in (False, True):
            images, digits = glyphs(heldout)
            other = list(LOOKS)[1:]
            drawn = torch.cat([in_look(images, name) for name in other])
            more.append((drawn, torch.cat([digits + 10 * (1 + i) for i in range(len(other))])))
        right = train(file, steps=steps, seed=seed, more=(more[0], more[1]))
        print(f"{file}: {right:.4f} of held-out images read right", flush=True)
    return Judge.load(file)


def score(clips: Sequence[Tensor], labels: Sequence[Label], looks: Sequence[str], judge: Judge) -> dict[str, float]:
    """Shares (0..1) of clips [F,H,W,3] that have the look, the digit, the direction; `both`: digit and direction;
    `all`: these in the look. By a judge of `judge_of`."""
    names, right = list(LOOKS), []
    for clip, label, name in zip(clips, labels, looks, strict=True):
        verdict = judge(clip)
        look = verdict.digit >= 0 and names[verdict.digit // 10] == name
        digit, way = verdict.digit % 10 == label.digit, verdict.direction == label.direction
        right.append((look, digit, look and digit, way, digit and way, look and digit and way))
    shares = np.mean(right, axis=0).tolist()
    return dict(zip(("look", "digit", "look and digit", "direction", "both", "all"), shares, strict=True))


def _glyph(digit: int, look: str, rng: np.random.Generator, heldout: bool) -> Tensor:
    images, digits = glyphs(heldout)
    return in_look(images[int(rng.choice(torch.nonzero(digits == digit).flatten().numpy()))], look)


def clip_in_look(
    label: Label, look: str, frames: int, size: tuple[int, int], rng: np.random.Generator, held: bool
) -> Tensor:
    """A clip, or with one frame a picture: uint8 [F,H,W,3]. held: of held-out handwriting."""
    glyph = _glyph(label.digit, look, rng, held)
    grey = paint(glyph, trajectory(label, frames, free_range(glyph, size), rng), size)
    return (grey[..., None] * torch.tensor(COLOURS[label.colour])).round().to(torch.uint8)


def picture(look: str, rng: np.random.Generator, *, other_than: int, heldout: bool) -> Tensor:
    """Of any digit but one in any colour, somewhere: uint8 [H,W,3]."""
    digit = int(rng.choice([digit for digit in range(10) if digit != other_than]))
    colour = tuple(COLOURS)[rng.integers(len(COLOURS))]
    return clip_in_look(Label(digit, colour), look, 1, PICTURE, rng, heldout)[0]


def write_looks(root: Path, looks: Sequence[str], clips: int, seed: int) -> None:
    """Writes clips in these looks by turns, a picture of each one's look, and train.jsonl, whose column `style` names
    it. Captions are the demo's. Raises UserError for a look that there is not."""
    for name in looks:
        in_look(torch.zeros(GLYPH, GLYPH), name)
    rows = []
    for i in range(clips):
        rng = np.random.default_rng((seed, 21, i))
        digit, direction = SEEN_PAIRS[rng.integers(len(SEEN_PAIRS))]
        label = Label(digit, tuple(COLOURS)[rng.integers(len(COLOURS))], VERBS[rng.integers(2)], direction)
        look, size = looks[i % len(looks)], SIZES[i // len(looks) % len(SIZES)]  # no size tells a look
        path, style = f"clips/{i:05d}.mp4", f"styles/{i:05d}.png"
        write_video(root / path, clip_in_look(label, look, FRAMES, size, rng, False), FPS)
        write_video(root / style, picture(look, rng, other_than=digit, heldout=False)[None], FPS)
        facts = {"frames": FRAMES, "fps": FPS, "height": size[0], "width": size[1]}
        rows.append({"path": path, "caption": caption(label, rng), "style": style, "look": look, **facts})
    write_whole(root / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
