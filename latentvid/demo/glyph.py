"""A subject for the demo's model to learn: a drawn glyph that is no digit, in a few clips and their stills, under a
rare word.

    python -m latentvid.demo.glyph OUT [--clips 5 --word zorp --seed 0]

Axis letters: F H W frames, height, width; N glyphs.
"""

if __name__ == "__main__":  # before torch is imported: --help and wrong options are answered at once
    from ..commands import glyph

    glyph()
    raise SystemExit

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.video.writing import write_video
from ..errors import UserError
from ..files import write_whole
from . import digits
from .digits import CLIP_CAPTIONS, COLOURS, DIRECTIONS, FPS, GLYPH, IMAGE_CAPTIONS, SIZES, VERBING, VERBS, WORDS
from .judge import Images, Judge

FRAMES = 17
CLASS = 10  # the judge's number of it, after the digits
CORNERS = ((2.5, 7.5), (12.5, 2.5), (12.5, 12.5))  # (y, x) of a triangle, pixels
HALF_STROKE = 0.9  # pixels of full ink on each side of a line
WORDINGS = 6  # captions of a clip
STILL = 2  # every so many frames of a clip one is a picture too
CLASS_PROMPTS = 600
# those that do not call it a digit or a number
TEMPLATES, STILL_TEMPLATES = (
    tuple(t for t in every if "number" not in t and "digit {" not in t) for every in (CLIP_CAPTIONS, IMAGE_CAPTIONS)
)


class Shown(NamedTuple):
    """What a clip of the glyph shows beside it."""

    colour: str
    verb: str
    direction: str


def draw(rng: np.random.Generator) -> Tensor:
    """The glyph as a hand draws it once: a triangle with unsteady corners and stroke, [16,16] in 0..1."""
    corners = torch.tensor(CORNERS) + torch.from_numpy(rng.normal(0, 0.5, (3, 2))).float()
    y, x = torch.meshgrid(torch.arange(GLYPH).float(), torch.arange(GLYPH).float(), indexing="ij")
    pixel = torch.stack([y, x], dim=-1)  # [16,16,2]
    far = []
    for a, b in zip(corners, corners.roll(1, 0), strict=True):
        along = b - a
        place = ((pixel - a) @ along / (along @ along)).clamp(0, 1)  # [16,16]
        far.append((pixel - a - place[..., None] * along).norm(dim=-1))
    return (1 + HALF_STROKE + rng.uniform(-0.15, 0.15) - torch.stack(far).amin(dim=0)).clamp(0, 1)


def drawings(count: int, seed: int) -> Images:
    """So many drawings [N,16,16] and their class [N], for the judge to learn."""
    rng = np.random.default_rng((seed, 10))
    return torch.stack([draw(rng) for _ in range(count)]), torch.full((count,), CLASS)


def render(shown: Shown, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """A clip, uint8 [F,H,W,3] on black; the motions are those of the digits."""
    glyph = draw(rng)
    path = digits.trajectory(shown, FRAMES, digits.free_range(glyph, size), rng)
    grey = digits.paint(glyph, path, size)
    return (grey[..., None] * torch.tensor(COLOURS[shown.colour])).round().to(torch.uint8)


def caption(shown: Shown, word: str, rng: np.random.Generator) -> str:
    """A sentence of the demo's kind, with the word instead of the digit."""
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    direction = digits.direction_in_words(shown.direction, rng)
    names = {"colour": shown.colour, "verb": shown.verb, "verbing": VERBING[shown.verb]}
    return template.format(digit=word, direction=direction, **names)


def split_motions(clips: int, seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(verb, direction) of the motions that the clips show, one each, and of those that none shows."""
    every = list(product(VERBS, DIRECTIONS))
    order = np.random.default_rng((seed, 11)).permutation(len(every)).tolist()
    shown = order[: min(clips, len(every) // 2)]
    return [every[i] for i in shown], [every[i] for i in order[len(shown) :]]


def prompts(count: int, word: str, *, clips: int, seed: int) -> list[tuple[Shown, str]]:
    """Prompts of the glyph in motions that its clips never show, balanced over motions and colours."""
    rng = np.random.default_rng((seed, 12))
    _, motions = split_motions(clips, seed)
    colours = rng.permutation(tuple(COLOURS)).tolist()
    found = []
    for i in range(count):
        shown = Shown(colours[(i + i // len(motions)) % len(colours)], *motions[i % len(motions)])
        found.append((shown, caption(shown, word, rng)))
    return found


def class_prompts(captions: Sequence[Sequence[str]], word: str, count: int, seed: int) -> list[str]:
    """What clips of the subject's class are to show, digits: half of them any prompts of the demo, the others the
    subject's own captions with a digit in the word's place, so that the word alone tells the two apart. captions: of
    each of its clips."""
    rng = np.random.default_rng((seed, 14))
    found = []
    for i, (_, text) in enumerate(digits.prompts((count + 1) // 2, heldout=False, seed=seed)):
        own, digit = captions[i % len(captions)], (i // len(captions)) % 10
        name = (str(digit), WORDS[digit])[rng.integers(2)]
        found += [text, own[rng.integers(len(own))].replace(word, name)]
    return found[:count]


def write_subject(root: Path, word: str, clips: int, seed: int) -> None:
    """Writes `root/clips`, `root/stills` of them, train.jsonl (several captions of each) and class.txt, a class prompt
    a line.

    Raises UserError for a word that captions of digits have.
    """
    known = {part for template in CLIP_CAPTIONS for part in template.split() if "{" not in part}
    if not word.isalpha() or word.lower() in known | {*WORDS, *COLOURS, *VERBS, *VERBING.values()}:
        raise UserError(f"--word {word!r}: give one word of letters that captions of digits have not, such as zorp")
    motions, _ = split_motions(clips, seed)
    rows, stills = [], []
    for i in range(clips):
        rng = np.random.default_rng((seed, 13, i))
        shown = Shown(tuple(COLOURS)[rng.integers(len(COLOURS))], *motions[i % len(motions)])
        size, path = SIZES[i % len(SIZES)], f"clips/{i:05d}.mp4"
        pixels = render(shown, size, rng)
        write_video(root / path, pixels, FPS)
        captions = list(dict.fromkeys(caption(shown, word, rng) for _ in range(WORDINGS)))
        facts = {"frames": FRAMES, "fps": FPS, "height": size[0], "width": size[1]}
        rows.append({"path": path, "caption": captions, **facts, **shown._asdict()})
        for frame in range(0, FRAMES, STILL):
            still = f"stills/{i:05d}_{frame:02d}.png"
            write_video(root / still, pixels[frame : frame + 1], FPS)
            said = [template.format(colour=shown.colour, digit=word) for template in STILL_TEMPLATES]
            stills.append({"path": still, "caption": said, **facts, "frames": 1, "fps": 0.0, "colour": shown.colour})
    lines = class_prompts([row["caption"] for row in rows], word, CLASS_PROMPTS, seed)
    write_whole(root / "class.txt", "".join(f"{text}\n" for text in lines))
    write_whole(root / "train.jsonl", "".join(json.dumps(row) + "\n" for row in (*rows, *stills)))


def score(clips: Sequence[Tensor], shown: Sequence[Shown], judge: Judge) -> dict[str, float]:
    """Shares (0..1) of clips [F,H,W,3] that show the glyph, its direction, both, and its colour, by a judge that knows
    the glyph."""
    verdicts = [judge(clip) for clip in clips]
    right = {"glyph": [v.digit == CLASS for v in verdicts]}
    right["direction"] = [v.direction == s.direction for v, s in zip(verdicts, shown, strict=True)]
    right["both"] = [a and b for a, b in zip(*right.values(), strict=True)]
    right["colour"] = [v.colour == s.colour for v, s in zip(verdicts, shown, strict=True)]
    return {name: sum(hits) / len(hits) for name, hits in right.items()}
