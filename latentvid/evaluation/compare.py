"""Shows people the clips of two folders in pairs, blind and side by side, and counts what they prefer.

    python -m latentvid.evaluation.compare A B --out DIR [--questions "Which looks better?" --pairs 40 --seed 0]
    python -m latentvid.evaluation.compare --count DIR choices-*.json [--out results.json]

The first makes DIR/compare.html, a page to send to raters, and DIR/key.json, which says what stood where: keep it. Each
rater sends back the file of choices that the page saves. The second counts them. Clips are paired by their names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..data.video import probe, read_frames
from ..errors import UserError, user_errors
from ..files import written_whole
from .compare_key import KEY, NOISE, PAGE, Key, Pair, draw_pairs, read_choices, read_key
from .compare_page import LIMIT, Shown, base64_size, noise_like, shown, write_page
from .footage import find_files
from .preference import count, table
from .rows import Clip

INDEX = "results.jsonl"  # beside clips that came of a list of prompts
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
    folders = {"A": a, "B": b}
    names = paired_names(a, b)
    prompts = read_prompts(folders, names)
    questions = tuple(questions or (PROMPT_QUESTIONS if prompts else QUESTIONS))
    if len(set(questions)) < len(questions) or not all(question.strip() for question in questions):
        raise UserError(f"--questions {' '.join(map(repr, questions))}: give different ones that are not empty")
    if checks < 0:
        raise UserError(f"--attention {checks}: give 0 or more")
    drawn = draw_pairs(names, len(names) if pairs is None else pairs, checks, seed)
    key = Key(str(a), str(b), seed, questions, _digest(folders, drawn), tuple(drawn))
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


def paired_names(a: Path, b: Path) -> list[str]:
    """The names of the clips, relative to the folders. Raises UserError where a name is in one folder only."""
    names = []
    for folder in (a, b):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: give two folders of clips with equal names")
        names.append({path.relative_to(folder).as_posix() for path in find_files([folder])})
    if a.resolve() == b.resolve():
        raise UserError(f"{a} and {b} are one folder: give two")
    for folder, other, missing in ((a, b, names[0] - names[1]), (b, a, names[1] - names[0])):
        if missing:
            first = ", ".join(sorted(missing)[:3])
            raise UserError(
                f"{len(missing)} clips of {folder} are not in {other} ({first}{', ...' if len(missing) > 3 else ''}): "
                "make them there, under the same names, or remove them here"
            )
    return sorted(names[0])


def read_prompts(folders: dict[str, Path], names: Sequence[str]) -> dict[str, str]:
    """Prompt by name, from results.jsonl in either folder or a .txt beside the clip; empty where no clip has one.

    Raises UserError where some have none, or the folders say different things.
    """
    found: dict[str, str] = {}
    for folder in folders.values():
        index = _read_index(folder / INDEX)
        for name in names:
            beside = (folder / name).with_suffix(".txt")
            prompt = index.get(name) or (beside.read_text(encoding="utf-8").strip() if beside.is_file() else "")
            if prompt and found.setdefault(name, prompt) != prompt:
                raise UserError(
                    f"{name} has the prompt {found[name]!r} in one folder and {prompt!r} in the other: "
                    "compare clips of the same prompts"
                )
    missing = [name for name in names if name not in found]
    if found and missing:
        raise UserError(
            f"{len(missing)} of {len(names)} clips have no prompt, such as {missing[0]}: add them to {INDEX}, or write "
            f"{Path(missing[0]).with_suffix('.txt')} beside the clip"
        )
    return found


def _read_index(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {row["file"]: row["prompt"] for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error!r}): each line must hold `file` and `prompt`") from error


def _digest(folders: dict[str, Path], pairs: Sequence[Pair]) -> str:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="A B | CHOICES", help="two folders; or files to count")
    parser.add_argument("--out", type=Path, help="folder of the page; or, with --count, a file for the results")
    parser.add_argument(
        "--questions", nargs="+", metavar="TEXT", help=f"default: {' '.join(map(repr, PROMPT_QUESTIONS))}"
    )
    parser.add_argument("--pairs", type=int, help="how many to show, drawn from the seed (default: all)")
    parser.add_argument("--seed", type=int, help="of the order and the sides (default 0)")
    parser.add_argument("--attention", type=int, metavar="K", help="pairs more that check raters (default 0): the same "
                        "clip twice, or a clip beside noise; counted apart")  # fmt: skip
    parser.add_argument("--count", type=Path, metavar="DIR", help="count choices of the page in DIR")
    args = parser.parse_args()
    if args.count is None:
        if len(args.paths) != 2 or args.out is None:
            raise UserError("give two folders and --out DIR (or --count DIR and files of choices)")
        given = {"pairs": args.pairs, "seed": args.seed, "checks": args.attention, "questions": args.questions}
        key = make_page(*args.paths, args.out, **{k: v for k, v in given.items() if v is not None})
        print(f"{args.out / PAGE}: {len(key.pairs)} pairs, page {key.page}; keep {args.out / KEY} from the raters")
        return
    for name in ("questions", "pairs", "seed", "attention"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is for making a page: leave it out with --count")
    if not args.paths:
        raise UserError("--count DIR: give the files of choices too (choices-NAME.json)")
    key = read_key(args.count)
    result = count(key, read_choices(args.paths, key))
    if args.out is not None:
        with written_whole(args.out) as beside:
            beside.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    with user_errors():
        main()
