"""Demo data: coloured handwritten digits that move and bounce, as mp4 and PNG files with captions.

The digits are scikit-learn's 1797 images of 8x8, enlarged to 16x16 pixels; nothing is downloaded.
Axis letters: F H W frames, height, width; N glyphs.
"""

if __name__ == "__main__":  # before torch is imported: --help and wrong options are answered at once
    from ..commands import digits

    digits()
    raise SystemExit

import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..data.video.writing import write_video
from ..errors import UserError

GLYPH = 16  # side of an enlarged digit, pixels
FPS = 8.0
SIZES = ((24, 24), (24, 32), (32, 24))  # (height, width)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VERBS = ("moves", "bounces")
VERBING = {"moves": "moving", "bounces": "bouncing"}
# All carry luma, and their chromaticities lie far apart, so thin strokes stay apart after 4:2:0.
COLOURS = {
    "red": (255, 55, 55),
    "green": (55, 225, 65),
    "blue": (65, 100, 255),
    "yellow": (245, 220, 45),
    "cyan": (45, 220, 235),
    "magenta": (235, 65, 225),
    "white": (255, 255, 255),
}
DIRECTIONS = {  # (dy, dx), y grows downwards
    "up": (-1, 0),
    "down": (1, 0),
    "left": (0, -1),
    "right": (0, 1),
    "up left": (-1, -1),
    "up right": (-1, 1),
    "down left": (1, -1),
    "down right": (1, 1),
}
# One direction a digit, in both verbs; a direction is withheld from two digits at most.
HELD_OUT_PAIRS = frozenset((digit, tuple(DIRECTIONS)[(3 * digit + 1) % 8]) for digit in range(10))
SEEN_PAIRS = tuple((d, name) for d in range(10) for name in DIRECTIONS if (d, name) not in HELD_OUT_PAIRS)

CLIP_CAPTIONS = (
    "a {colour} {digit} {verb} {direction}",
    "a {colour} {digit} is {verbing} {direction}",
    "the digit {digit} in {colour} {verbing} {direction}",
    "a {colour} digit {digit} {verb} {direction}",
    "a handwritten {digit} in {colour} {verb} {direction}",
    "a video of a {colour} {digit} {verbing} {direction}",
    "the {colour} number {digit} {verb} {direction}",
    "{verbing} {direction}, a {colour} {digit}",
    "{colour} {digit} {verbing} {direction} on a black background",
    "the {digit} that is {colour} {verb} {direction}",
)
IMAGE_CAPTIONS = (
    "a {colour} {digit}",
    "an image of a {colour} {digit}",
    "the digit {digit} in {colour}",
    "a {colour} digit {digit}",
    "a handwritten {digit} in {colour}",
    "a picture of the {colour} number {digit}",
    "{colour} {digit} on a black background",
    "the {digit} that is {colour}",
)
STRAIGHT_WORDS = {
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
}
DIAGONAL_WORDS = (
    "{vertical} and to the {side}",
    "{vertical} and {side}",
    "to the {side} and {vertical}",
    "diagonally {vertical} and to the {side}",
)


@dataclass(frozen=True)
class Label:
    """What a clip shows. An image has neither verb nor direction.

    `direction` (a key of DIRECTIONS) is the motion of the clip's first half.
    """

    digit: int
    colour: str
    verb: str | None = None
    direction: str | None = None

    def __post_init__(self) -> None:
        if self.digit not in range(10):
            raise ValueError(f"digit {self.digit!r}: give a whole number from 0 to 9")
        if self.colour not in COLOURS:
            raise ValueError(f"colour {self.colour!r}: choose one of {', '.join(COLOURS)}")
        if (self.verb is None) != (self.direction is None):
            raise ValueError(f"verb {self.verb!r} with direction {self.direction!r}: give both (clip) or none (image)")
        if self.verb is not None and self.verb not in VERBS:
            raise ValueError(f"verb {self.verb!r}: choose one of {', '.join(VERBS)}")
        if self.direction is not None and self.direction not in DIRECTIONS:
            raise ValueError(f"direction {self.direction!r}: choose one of {', '.join(DIRECTIONS)}")


@cache
def glyphs(heldout: bool, scale: int = 1) -> tuple[Tensor, Tensor]:
    """Digit images [N,n,n] in 0..1, of n = 16 scale pixels, and their digits [N]: each class's every fifth image, or
    all the others. Edges are as steep in pixels at every scale: larger images show what smaller ones do not."""
    from sklearn.datasets import load_digits  # here, since it takes a second that captions and labels need not pay

    data = load_digits()
    digits = torch.from_numpy(data.target).long()
    nth = torch.zeros_like(digits)  # an image's place within its class
    for digit in range(10):
        nth[digits == digit] = torch.arange(int((digits == digit).sum()))
    keep = (nth % 5 == 4) == heldout
    small = torch.from_numpy(data.images[keep.numpy()]).float()[:, None] / 16  # [N,1,8,8]
    side = GLYPH * scale
    large = nnf.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)
    if scale > 1:
        large = (large - 0.5) * scale + 0.5
    return large[:, 0].clamp(0, 1), digits[keep]


def paint(glyph: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """Glyphs [F,n,n] (or one for all, [n,n]) on a black canvas, by exact bilinear shift: [F,H,W] in 0..1.

    `corner` [F,2]: each glyph's top left pixel (y, x), fractional; what falls outside is cut.
    """

    def hat(length: int, start: Tensor) -> Tensor:  # [F,length,n]
        pixel = torch.arange(length)[None, :, None]
        source = start[:, None, None] + torch.arange(glyph.shape[-1])
        return (1 - (pixel - source).abs()).clamp_min(0)

    rows, columns = hat(size[0], corner[:, 0]), hat(size[1], corner[:, 1])
    return rows @ glyph @ columns.transpose(1, 2)


def free_range(glyph: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners [2,2] ((y low, x low), (y high, x high)) between which a glyph's ink [16,16] lies on the canvas."""
    ink = glyph > 0.1
    low, high = [], []
    for axis in (0, 1):
        used = torch.nonzero(ink.any(dim=1 - axis)).flatten()
        low.append(-float(used[0]))
        high.append(size[axis] - 1 - float(used[-1]))
    return torch.tensor([low, high])


def trajectory(label: Label, frames: int, free: Tensor, rng: np.random.Generator) -> Tensor:
    """Corners [F,2] of a clip, with `free` as from `free_range`.

    "moves" is straight, at constant speed, and keeps half a pixel off the walls. "bounces" reflects where the ink
    meets a wall, first at 55 to 75 % of the clip. Speeds are 90 to 100 % of the greatest possible.
    """
    low, high = (bound.tolist() for bound in free)
    if label.direction is None:
        return torch.tensor([[rng.uniform(low[axis], high[axis]) for axis in (0, 1)]]).expand(frames, 2)
    sense = DIRECTIONS[label.direction]
    moving = [axis for axis in (0, 1) if sense[axis]]
    time = torch.linspace(0, 1, frames)
    speed = rng.uniform(0.9, 1.0)
    path = torch.empty(frames, 2)
    if label.verb == "moves":
        low, high = [x + 0.5 for x in low], [x - 0.5 for x in high]
        travel = speed * min(high[axis] - low[axis] for axis in moving)  # pixels in the whole clip, on each axis
        for axis in (0, 1):
            slack = rng.uniform(0, high[axis] - low[axis] - travel * abs(sense[axis]))
            start = low[axis] + slack if sense[axis] >= 0 else high[axis] - slack
            path[:, axis] = start + sense[axis] * travel * time
        return path
    hits = dict.fromkeys(moving, rng.uniform(0.55, 0.75))
    if len(moving) == 2:  # the other axis meets its wall later, or (past 1) not at all
        hits[int(rng.choice(moving))] += rng.uniform(0, 0.6)
    travel = speed * min((high[axis] - low[axis]) / hits[axis] for axis in moving)
    for axis in (0, 1):
        if axis in hits:
            wall = high[axis] if sense[axis] > 0 else low[axis]
            path[:, axis] = wall - sense[axis] * travel * (time - hits[axis]).abs()
        else:
            path[:, axis] = rng.uniform(low[axis], high[axis])
    return path


def render(
    label: Label, frames: int, size: tuple[int, int], rng: np.random.Generator, *, heldout: bool, scale: int = 1
) -> Tensor:
    """A clip of `label`, uint8 [F,H,W,3] on black; `heldout` draws from the held-out digit images. scale: how many
    times as large as usual digits are.

    Raises ValueError for a canvas too small to move in, or a clip too short to show a motion.
    """
    least = 24 * scale
    if min(size) < least or frames < (1 if label.verb is None else 5):
        raise ValueError(
            f"{frames} frames of {size[0]}x{size[1]}: digits need {least}x{least} pixels, and 5 frames to move"
        )
    images, digits = glyphs(heldout, scale)
    glyph = images[int(rng.choice(torch.nonzero(digits == label.digit).flatten().numpy()))]
    corner = trajectory(label, frames, free_range(glyph, size), rng)
    grey = paint(glyph, corner, size)
    return (grey[..., None] * torch.tensor(COLOURS[label.colour])).round().to(torch.uint8)


def caption(label: Label, rng: np.random.Generator) -> str:
    """A lower-case sentence that names digit (numeral or word), colour and, for a clip, verb and direction."""
    digit = (str(label.digit), WORDS[label.digit])[rng.integers(2)]
    if label.verb is None or label.direction is None:
        template = IMAGE_CAPTIONS[rng.integers(len(IMAGE_CAPTIONS))]
        return template.format(colour=label.colour, digit=digit)
    template = CLIP_CAPTIONS[rng.integers(len(CLIP_CAPTIONS))]
    words = direction_in_words(label.direction, rng)
    verbing = VERBING[label.verb]
    return template.format(colour=label.colour, digit=digit, verb=label.verb, verbing=verbing, direction=words)


def direction_in_words(direction: str, rng: np.random.Generator) -> str:
    if " " in direction:
        vertical, side = direction.split()
        return DIAGONAL_WORDS[rng.integers(len(DIAGONAL_WORDS))].format(vertical=vertical, side=side)
    return STRAIGHT_WORDS[direction][rng.integers(2)]


@cache
def _wordings() -> dict[str, str]:
    """Every way that a caption words a direction -> the direction."""
    found = {words: name for name, ways in STRAIGHT_WORDS.items() for words in ways}
    for name in DIRECTIONS:
        if " " in name:
            vertical, side = name.split()
            found |= {way.format(vertical=vertical, side=side): name for way in DIAGONAL_WORDS}
    return found


@cache
def _grammar() -> tuple[re.Pattern[str], ...]:
    """A pattern for each template of a caption."""
    fields = {
        "colour": COLOURS,
        "digit": (*map(str, range(10)), *WORDS),
        "verb": VERBS,
        "verbing": VERBING.values(),
        "direction": _wordings(),
    }
    groups = {name: f"(?P<{name}>{'|'.join(words)})" for name, words in fields.items()}
    return tuple(re.compile(template.format(**groups)) for template in CLIP_CAPTIONS + IMAGE_CAPTIONS)


def read_caption(text: str) -> Label:
    """The label that `caption` worded so. Raises UserError for a text that it never writes."""
    found = next(filter(None, (pattern.fullmatch(text) for pattern in _grammar())), None)
    if found is None:
        raise UserError(f"{text[:80]!r} is no caption of the demo: write as in 'a red 3 moves up and to the left'")
    said = found.groupdict()
    digit = int(said["digit"]) if said["digit"].isdigit() else WORDS.index(said["digit"])
    if "direction" not in said:
        return Label(digit, said["colour"])
    verb = said.get("verb") or next(verb for verb, form in VERBING.items() if form == said["verbing"])
    return Label(digit, said["colour"], verb, _wordings()[said["direction"]])


def prompts(n: int, *, heldout: bool, seed: int) -> list[tuple[Label, str]]:
    """`n` clip labels with captions, balanced over pairs, colours and verbs; only held-out pairs, or only seen ones."""
    rng = np.random.default_rng((seed, 3, int(heldout)))
    pairs = sorted(HELD_OUT_PAIRS) if heldout else SEEN_PAIRS
    order, colours = rng.permutation(len(pairs)), rng.permutation(tuple(COLOURS)).tolist()
    found = []
    for index in range(n):
        digit, direction = pairs[order[index % len(pairs)]]
        turn = index + index // len(pairs)  # so that a pair meets every colour and verb in later rounds
        label = Label(digit, colours[turn % len(colours)], VERBS[turn % 2], direction)
        found.append((label, caption(label, rng)))
    return found


def _length(split: str, index: int) -> int:
    """Frames of a split's sample: 1, 9, 17 in 25, 30, 45 % (train) or 9, 17 in 30, 70 %."""
    place = index * 7 % 20  # visits all twenty places, well mixed
    if split == "train":
        return 1 if place < 5 else 9 if place < 11 else 17
    return 9 if place < 6 else 17


def _write_sample(root: Path, split: str, index: int, rng: np.random.Generator, scale: int) -> dict[str, object]:
    """Render and write one sample; return its manifest row."""
    frames, size = _length(split, index), tuple(scale * side for side in SIZES[index % len(SIZES)])
    pairs = sorted(HELD_OUT_PAIRS) if split == "val_pairs" else SEEN_PAIRS
    digit, direction = pairs[rng.integers(len(pairs))]
    colour, verb = tuple(COLOURS)[rng.integers(len(COLOURS))], VERBS[rng.integers(2)]
    label = Label(digit, colour) if frames == 1 else Label(digit, colour, verb, direction)
    path = Path("clips", split, f"{index:05d}.{'png' if frames == 1 else 'mp4'}")
    write_video(root / path, render(label, frames, size, rng, heldout=split != "train", scale=scale), FPS)
    row = {"path": path.as_posix(), "caption": caption(label, rng), "frames": frames}
    row["fps"] = 0.0 if frames == 1 else FPS  # an image has no rate, as `probe` says too
    return {**row, "height": size[0], "width": size[1], **asdict(label)}


def write_dataset(root: Path, *, train: int = 3000, val: int = 320, seed: int = 0, scale: int = 1) -> None:
    """Write clips and images under `root/clips` and the manifests train.jsonl, val.jsonl and val_pairs.jsonl.

    val: held-out digit images in seen (digit, direction) pairs; val_pairs (`val // 2` rows): held-out images in
    held-out pairs. A sample depends on `seed`, `scale`, its split and its number only. Manifests come last, so one that
    is there is whole.
    """
    if train < 1 or val < 2:
        raise UserError(f"train={train}, val={val}: ask for at least 1 training and 2 validation samples")
    root = Path(root)
    counts = {"val": val, "val_pairs": val // 2, "train": train}
    lines = {}
    for number, (split, count) in enumerate(counts.items()):
        rngs = (np.random.default_rng((seed, number, index)) for index in range(count))
        rows = [_write_sample(root, split, index, rng, scale) for index, rng in enumerate(rngs)]
        lines[split] = "".join(json.dumps(row) + "\n" for row in rows)
    for split, text in lines.items():
        (root / f"{split}.jsonl").write_text(text, encoding="utf-8")
