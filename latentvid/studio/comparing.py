"""Two clips of the gallery side by side, blind, and what was chosen, as pages of `latentvid.evaluation.compare` do it.

The folder holds a/ and b/ with the clips and their prompts, the key, and the choices: `latentvid preference choices
FOLDER FOLDER/choices-studio.json --out pairs.jsonl` makes a table for preference tuning of it.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..data.video.reading import probe, read_frames
from ..errors import UserError
from ..evaluation.compare import IMAGE_FPS, QUESTIONS, digest_of
from ..evaluation.preference.key import CHOICES, KEY, Choice, Key, Pair, read_choices, read_key
from ..evaluation.preference.page import shown
from ..evaluation.rows import Clip
from ..files import write_whole
from .gallery import Gallery, Item

FILE = "choices-studio.json"
RATER = "studio"
FRAMES = 400  # of a clip, that are shown


@dataclass(frozen=True)
class Blind:
    """Two items of a prompt, and which of them is on the left: "A", the first, or "B"."""

    first: Item
    second: Item
    left: str

    @property
    def sides(self) -> tuple[Item, Item]:
        """Left and right."""
        return (self.first, self.second) if self.left == "A" else (self.second, self.first)


def blind(first: Item, second: Item, draws: random.Random | None = None) -> Blind:
    """The two in random order. Raises UserError for clips that do not compare."""
    if first.name == second.name:
        raise UserError("choose two clips")
    if first.prompt != second.prompt:
        raise UserError("compare clips of the same prompt: Vary makes one")
    return Blind(first, second, (draws or random.SystemRandom()).choice("AB"))


def side_by_side(gallery: Gallery, pair: Blind) -> bytes:
    """An mp4 of both, left and right of each other, in step. Raises UserError."""
    clips = []
    for item in pair.sides:
        file = gallery.file(item)
        clips.append(Clip(read_frames(file, 0, min(FRAMES, probe(file).frames)), probe(file).fps or IMAGE_FPS, None))
    return shown(*clips).video


def keep_choice(folder: Path, gallery: Gallery, pair: Blind, choice: Choice) -> int:
    """Adds the choice to those in the folder; gives their number. Raises UserError."""
    if choice not in CHOICES:
        raise UserError(f"choose one of {', '.join(CHOICES)}")
    sides = {"A": folder / "a", "B": folder / "b"}
    pairs, made = _before(folder)
    item, number = {"A": pair.first, "B": pair.second}, len(pairs) + 1
    ending = Path(pair.first.name).suffix
    if Path(pair.second.name).suffix != ending:
        raise UserError("compare two videos, or two pictures")
    name = f"{number:05}{ending}"
    for side, place in sides.items():
        place.mkdir(parents=True, exist_ok=True)
        (place / name).unlink(missing_ok=True)  # of a choice that was interrupted
        shutil.copyfile(gallery.file(item[side]), place / name)
        write_whole((place / name).with_suffix(".txt"), item[side].prompt + "\n")
    right = "B" if pair.left == "A" else "A"
    pairs = (*pairs, Pair(name, pair.left, right))
    key = Key(str(sides["A"]), str(sides["B"]), 0, QUESTIONS, digest_of(sides, pairs), pairs)
    rows = [*made, {"question": QUESTIONS[0], "pair": number, "choice": choice}]
    said = {"page": key.page, "rater": RATER, "choices": rows}
    write_whole(folder / FILE, json.dumps(said, indent=1) + "\n")
    key.write(folder)
    return number


def _before(folder: Path) -> tuple[tuple[Pair, ...], list[dict]]:
    """The pairs and choices so far."""
    if not (folder / KEY).is_file() and not (folder / FILE).is_file():
        return (), []
    key = read_key(folder)
    found = read_choices([folder / FILE], key)[0].made[QUESTIONS[0]]
    return key.pairs, [{"question": QUESTIONS[0], "pair": n, "choice": choice} for n, choice in found.items()]
