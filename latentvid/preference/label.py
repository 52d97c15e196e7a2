"""Says which clip of a prompt is preferred to which: by scores of single clips, or by what people chose on a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ..data.manifest.manifest import check_output
from ..data.video.reading import probe, read_frames
from ..errors import ClipError, UserError
from ..evaluation.compare import IMAGE_FPS, digest_of, paired_files, read_prompts
from ..evaluation.mean_score import MeanScore
from ..evaluation.metrics import Metrics, open_metrics
from ..evaluation.preference.counting import WORTH
from ..evaluation.preference.key import Choices, Key, read_choices, read_key
from ..evaluation.rows import Clip
from .pairs import Pairs


def by_scores(folders: Sequence[Path], names: Sequence[str], weights: Path | None, device: torch.device) -> Pairs:
    """Pairs of equally named clips of two folders or more, the best and the worst by scores; the first that differs
    decides.

    names: as `latentvid.evaluation` has them, or MODULE:NAME. weights: the folder of their networks. Raises UserError
    for scores that are not of a clip by itself, or of which neither more nor less is better, and clips without prompts.
    """
    files = paired_files(*folders)
    prompts = read_prompts(*files)
    if not prompts:
        said = " and ".join(map(str, folders))
        raise UserError(f"the clips of {said} have no prompts: pairs need a caption (results.jsonl, or NAME.txt)")
    metrics = open_metrics(names, weights, device)
    for name, score in metrics.scores.items():
        if not isinstance(score, MeanScore) or score.compares != "none" or score.better == "neither":
            raise UserError(f"--score {name}: does not say of two clips which is better by itself: give another")
    found = Pairs()
    for name in tqdm(sorted(files[0].paths), desc="scoring", unit="prompt", disable=None):
        clips = [side.paths[name] for side in files]
        try:
            values = [_values(clip, prompts[name], metrics) for clip in clips]
        except ClipError as error:
            found.left_out[error.reason] += 1
            continue
        if none := [score for score in metrics.scores if any(math.isnan(each[score]) for each in values)]:
            found.left_out[f"{none[0]} is no number"] += 1
            continue
        found.add(clips, prompts[name], _best_and_worst([_rank(metrics, each) for each in values]), values)
    return found


def _values(path: Path, prompt: str, metrics: Metrics) -> dict[str, float]:
    """Of each score. Raises ClipError."""
    clip = Clip(read_frames(path), probe(path).fps or IMAGE_FPS, prompt, name=str(path))
    rows = {name: extractor(clip) for name, extractor in metrics.extractors.items()}
    return {name: score.of_clip(rows[score.extractor]) for name, score in metrics.scores.items()}


def _rank(metrics: Metrics, values: dict[str, float]) -> tuple[float, ...]:
    """By which clips are compared: more is better."""
    return tuple(v if metrics.scores[name].better == "higher" else -v for name, v in values.items())


def _best_and_worst(ranks: Sequence[tuple[float, ...]]) -> tuple[int, int] | None:
    """Their places; None where all are equal."""
    best, worst = (ranks.index(of(ranks)) for of in (max, min))
    return None if best == worst else (best, worst)


def by_choices(folder: Path, files: Sequence[Path], question: str | None) -> Pairs:
    """The pairs of a page of `latentvid.evaluation.compare`, by the mean of the raters' choices (a tie is a half).

    folder: of the page, with its key. files: the choices. question: which of the page's; None: its only one. Checks of
    attention are no pairs. Raises UserError for clips without prompts, and where they are not where they were.
    """
    key = read_key(folder)
    choices = read_choices(files, key)
    question = _question(key, question)
    sides = {"A": Path(key.a), "B": Path(key.b)}
    if lost := [side for side in sides.values() if not side.is_dir()]:
        raise UserError(
            f"{lost[0]}, whose clips the page in {folder} shows, is not there: put it back, or call this from the "
            "folder in which the page was made"
        )
    prompts = read_prompts(*paired_files(*sides.values()))
    if not prompts:
        raise UserError(f"the clips of {key.a} and {key.b} have no prompts: pairs need a caption")
    if lost := [pair.name for pair in key.pairs if pair.name not in prompts]:
        raise UserError(
            f"{sides['A'] / lost[0]} is gone: put the clips that the page shows back into {key.a} and {key.b}"
        )
    if digest_of(sides, key.pairs) != key.digest:
        raise UserError(
            f"clips in {key.a} and {key.b} are others than those that the page in {folder} shows: put these back"
        )
    found = Pairs()
    for number, pair in enumerate(key.pairs, 1):
        if pair.is_check:
            continue
        votes = _votes(key, choices, question, number)
        if not votes:
            found.left_out["nobody chose"] += 1
            continue
        clips = [side / pair.name for side in sides.values()]
        worth = sum(WORTH[vote] for vote in votes) - len(votes) / 2
        order = None if worth == 0 else (0, 1) if worth > 0 else (1, 0)
        found.add(clips, prompts[pair.name], order, [{"votes": votes.count(s)} for s in sides])
    return found


def _question(key: Key, asked: str | None) -> str:
    if asked is None and len(key.questions) == 1:
        return key.questions[0]
    if asked not in key.questions:
        what = "the page asks several" if asked is None else f"the page does not ask {asked!r}"
        raise UserError(f"--question: {what}: give one of {', '.join(map(repr, key.questions))}")
    return asked


def _votes(key: Key, choices: Sequence[Choices], question: str, number: int) -> list[str]:
    """What each rater who answered chose: A, B or tie."""
    made = [rater.made[question] for rater in choices]
    return [key.pairs[number - 1].chosen(one[number]) for one in made if number in one]


def check_table(out: Path) -> None:
    """Raises UserError where no table can be written: before the work, not after it."""
    check_output(out)
