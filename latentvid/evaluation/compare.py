"""Shows people the clips of two folders in pairs, blind and side by side, and counts what they prefer.

    python -m latentvid.evaluation.compare A B --out DIR [--questions "Which looks better?" --pairs 40 --seed 0]
    python -m latentvid.evaluation.compare --count DIR choices-*.json [--out results.json]

The first makes DIR/compare.html, a page to send to raters, and DIR/key.json, which says what stood where: keep it. Each
rater sends back the file of choices that the page saves. The second counts them. Clips are paired by their names.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported: --help and wrong options are answered at once
    from ..commands import compare

    compare()
    raise SystemExit

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from ..data.video.reading import probe, read_frames
from ..errors import UserError
from ..files import check_outputs, write_whole
from ..limits import check
from ..words import counted
from .clip_folder import INDEX, Files, list_files
from .preference.counting import count, table
from .preference.key import KEY, NOISE, PAGE, Key, Pair, draw_pairs, read_choices, read_key
from .preference.page import LIMIT, Shown, base64_size, noise_like, shown, write_page
from .rows import Clip

QUESTIONS = ("Which looks better?",)
PROMPT_QUESTIONS = (*QUESTIONS, "Which follows the prompt better?")
IMAGE_FPS = 1.0


def make_page(
    a: Path,
    b: Path,
    out: Path,
    *,
    questions: Sequence[str] | None = None,
    pairs: int | None = None,
    seed: int = 0,
    checks: int = 0,
) -> Key:
    """Writes the page and its key to the folder `out`, for `pairs` (None: all) of the clips in the folders a and b.

    questions: None asks which looks better and, where the clips have prompts, which follows the prompt better.
    checks: pairs more that show whether raters look (`draw_pairs`).
    Raises UserError for folders whose clips differ in name or prompt, and a page above `LIMIT`.
    """
    check_outputs(out, (PAGE, KEY))
    folders = {"A": a, "B": b}
    files = paired_files(a, b)
    names, prompts = sorted(files[0].paths), read_prompts(*files)
    questions = tuple(questions or (PROMPT_QUESTIONS if prompts else QUESTIONS))
    if len(set(questions)) < len(questions) or not all(question.strip() for question in questions):
        raise UserError(f"--questions {' '.join(map(repr, questions))}: give different ones that are not empty")
    drawn = draw_pairs(names, len(names) if pairs is None else pairs, check("attention", checks), seed)
    key = Key(str(a), str(b), seed, questions, digest_of(folders, drawn), tuple(drawn))
    key.check_folder(out)
    clips: list[Shown] = []
    for number, pair in enumerate(tqdm(drawn, desc="pairs", unit="pair", disable=None), 1):
        clips.append(_shown(folders, pair, prompts.get(pair.name), seed, number))
        if base64_size(clips) > LIMIT:
            raise UserError(
                f"the page would be above {LIMIT / 1e6:.0f} MB with pair {number} of {len(drawn)}: "
                "show fewer (--pairs), or shorter or smaller clips"
            )
    key.write(out)
    write_page(out / PAGE, key.page, questions, clips)
    return key


def paired_files(*folders: Path) -> tuple[Files, ...]:
    """The clips of two folders or more by name, with their prompts. Raises UserError where a name is not in all."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: give folders of clips with equal names")
    for number, folder in enumerate(folders):
        if same := [other for other in folders[:number] if other.resolve() == folder.resolve()]:
            raise UserError(f"{same[0]} and {folder} are one folder: give two")
    found = tuple(map(list_files, folders))
    for other, others in zip(folders[1:], found[1:], strict=True):
        for where, here, elsewhere, there in (
            (folders[0], found[0], other, others),
            (other, others, folders[0], found[0]),
        ):
            missing = sorted(here.paths.keys() - there.paths.keys())
            if missing:
                raise UserError(
                    f"{elsewhere} lacks {counted(len(missing), 'clip')} of {where} ({', '.join(missing[:3])}"
                    f"{', ...' if len(missing) > 3 else ''}): make them there, under the same names, or remove them "
                    "here"
                )
    return found


def read_prompts(*files: Files) -> dict[str, str]:
    """Prompt by name, from any of the folders; empty where no clip has one.

    Raises UserError where some have none, or the folders say different things.
    """
    found: dict[str, str] = {}
    for each in files:
        for name in found.keys() & each.captions.keys():
            if found[name] != each.captions[name]:
                raise UserError(
                    f"{name} has the prompt {found[name]!r} in one folder and {each.captions[name]!r} in "
                    "another: compare clips of the same prompts"
                )
        found |= each.captions
    names = files[0].paths.keys()
    missing = sorted(names - found.keys())
    if found and missing:
        raise UserError(
            f"{len(missing)} of {counted(len(names), 'clip')} have no prompt, such as {missing[0]}: add "
            f"them to {INDEX}, or "
            f"write {Path(missing[0]).with_suffix('.txt')} beside the clip"
        )
    return found


def digest_of(folders: Mapping[str, Path], pairs: Sequence[Pair]) -> str:
    """Of the clips that the pairs show, as `Key.digest` holds it."""
    digest = hashlib.sha256()
    for pair in pairs:
        for side in (pair.left, pair.right):
            if side in folders:
                with (folders[side] / pair.name).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _shown(folders: dict[str, Path], pair: Pair, prompt: str | None, seed: int, number: int) -> Shown:
    paths = {side: folders[side] / pair.name for side in (pair.left, pair.right) if side != NOISE}
    clips = {side: Clip(read_frames(path), probe(path).fps or IMAGE_FPS, prompt) for side, path in paths.items()}
    if NOISE in (pair.left, pair.right):
        clips[NOISE] = noise_like(next(iter(clips.values())), seed, number)
    try:
        return shown(clips[pair.left], clips[pair.right])
    except UserError as error:
        raise UserError(f"{pair.name}: {error}") from error


# ----------------------------------------------------------------------------------------------------------- command


def count_choices(folder: Path, files: Sequence[Path], out: Path | None) -> str:
    """The table of what raters chose on the page in `folder`; as JSON in the file `out`, if there is one."""
    if out is not None:
        check_outputs(out.parent, (out.name,))
    key = read_key(folder)
    result = count(key, read_choices(files, key))
    if out is not None:
        write_whole(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return table(result)
