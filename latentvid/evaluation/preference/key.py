"""Which clip stood on which side of a comparison's page, and the choices that came back from it.

The page knows left and right only; the key stays with whoever made it, and its hash ties choices to their page.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import UserError
from ...files import read_json, write_whole
from ...rng import derived_seed
from ...words import counted

KEY = "key.json"
PAGE = "compare.html"
NOISE = "noise"
Choice = Literal["left", "tie", "right"]
CHOICES: tuple[Choice, ...] = ("left", "tie", "right")


@dataclass(frozen=True)
class Pair:
    """What a pair shows: the clips `name` of the folders "A" and "B" (`left`, `right`).

    Checks of raters have the same folder twice, or a folder's clip and `NOISE`.
    """

    name: str
    left: str
    right: str

    @property
    def is_check(self) -> bool:
        return {self.left, self.right} != {"A", "B"}

    @property
    def expected(self) -> Choice:
        """Of a check: what an attentive rater chooses."""
        return "tie" if self.left == self.right else "right" if self.left == NOISE else "left"

    def chosen(self, choice: Choice) -> str:
        """ "A", "B" or "tie"."""
        return "tie" if choice == "tie" else self.left if choice == "left" else self.right


@dataclass(frozen=True)
class Key:
    """a, b: the folders, as given. digest: of all clips shown, so that the hash cannot be guessed from the page."""

    a: str
    b: str
    seed: int
    questions: tuple[str, ...]
    digest: str
    pairs: tuple[Pair, ...]  # in the page's order, where they are called 1, 2, ...

    @property
    def page(self) -> str:
        """Hash of all that the key says."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def check_folder(self, folder: Path) -> None:
        """Raises UserError where the folder holds another page's key: choices of that could not be counted again."""
        path = folder / KEY
        if path.exists() and read_key(folder) != self:
            raise UserError(f"{path} is of another page, whose choices need it: give another --out, or remove it")

    def write(self, folder: Path) -> None:
        write_whole(folder / KEY, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def read_key(folder: Path) -> Key:
    """The key in a folder. Raises UserError."""
    path = folder / KEY
    found = _read(path, f"give the folder that `compare A B --out` wrote, which holds {KEY}")
    try:
        pairs = tuple(Pair(**pair) for pair in found["pairs"])
        return Key(**(found | {"questions": tuple(found["questions"]), "pairs": pairs}))
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{path} is no key of a page ({error}): make the page again with the same clips and seed"
        ) from None


def draw_pairs(names: Sequence[str], count: int, checks: int, seed: int) -> list[Pair]:
    """`count` of the names and `checks` more pairs, in an order and with sides drawn from the seed.

    A is on the left in half of the pairs (rounded to either side), and so is the clip beside noise. Of the checks half,
    rounded up, are a clip beside noise, the others the same clip twice.
    Raises UserError where there are fewer than `count` names.
    """
    if count > len(names) or count < 1:
        raise UserError(f"--pairs {count}: the folders hold {counted(len(names), 'pair')}; give 1 to {len(names)}")
    draws, names = random.Random(derived_seed(seed, 0, "compare")), sorted(names)
    chosen = draws.sample(names, count)
    pairs = [Pair(name, *sides) for name, sides in zip(chosen, _sides(count, draws), strict=True)]
    noisy = -(-checks // 2)
    for first, second in _sides(noisy, draws):
        shown = draws.choice("AB")
        sides = (shown, NOISE) if first < second else (NOISE, shown)
        pairs.append(Pair(draws.choice(names), *sides))
    for _ in range(checks - noisy):
        pairs.append(Pair(draws.choice(names), *(draws.choice("AB") * 2)))
    draws.shuffle(pairs)
    return pairs


def _sides(count: int, draws: random.Random) -> list[tuple[str, str]]:
    either = draws.choice([("A", "B"), ("B", "A")])
    sides = [either if i % 2 else either[::-1] for i in range(count)]
    draws.shuffle(sides)
    return sides


@dataclass(frozen=True)
class Choices:
    """What a rater chose: by question and by number of the pair, from 1."""

    rater: str
    made: dict[str, dict[int, Choice]]


def read_choices(paths: Sequence[Path], key: Key) -> list[Choices]:
    """The files that the page saved, one a rater.

    Raises UserError, with the file, for choices of another page, a rater who is there twice, pairs and questions that
    the page does not have, and files that are damaged.
    """
    found: dict[str, tuple[Path, Choices]] = {}
    for path in paths:
        choices = _read_choices(path, key)
        name = " ".join(choices.rater.split()).casefold()
        if name in found:
            raise UserError(
                f"{path} and {found[name][0]} are both of the rater {choices.rater!r}: give one file a rater, "
                "or change the name in one where they are two people"
            )
        found[name] = path, choices
    return [choices for _, choices in found.values()]


def _read_choices(path: Path, key: Key) -> Choices:
    found = _read(path, "give files that the page saved (choices-NAME.json)")
    try:
        page, rater, rows = found["page"], found["rater"], found["choices"]
        made: dict[str, dict[int, Choice]] = {question: {} for question in key.questions}
        if page != key.page:
            raise UserError(
                f"is of page {page}, but the key is of page {key.page}: count it with its own page's folder"
            )
        if not isinstance(rater, str) or not rater.strip():
            raise UserError("has no rater: write a name under `rater`")
        for row in rows:
            question, pair, choice = row["question"], row["pair"], row["choice"]
            if question not in made:
                raise UserError(f"answers {question!r}, which the page does not ask: remove that")
            if type(pair) is not int or not 1 <= pair <= len(key.pairs):
                raise UserError(f"has pair {pair!r}, but the page's are 1 to {len(key.pairs)}: remove that")
            if choice not in CHOICES:
                raise UserError(f"chooses {choice!r} in pair {pair}: the choices are {', '.join(CHOICES)}")
            if pair in made[question]:
                raise UserError(f"answers {question!r} twice for pair {pair}: remove one")
            made[question][pair] = choice
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} is not as the page saves choices ({error!r}): save it again from the page") from None
    return Choices(rater, made)


def _read(path: Path, fix: str) -> dict[str, Any]:
    found = read_json(path, fix=fix)
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold an object: {fix}")
    return found
