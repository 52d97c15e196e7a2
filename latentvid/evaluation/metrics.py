"""All scores and extractors by name, and those of them that can be opened here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch

from ..errors import UserError
from . import per_clip
from .rows import Extractor, Score
from .sets.features import PICTURES, I3DRows, InceptionRows
from .sets.scores import SET_SCORES, InceptionScore

SCORES: dict[str, Score] = {score.name: score for score in SET_SCORES} | per_clip.SCORES
EXTRACTORS: dict[str, type[Extractor]] = {
    "inception": InceptionRows,
    "i3d": I3DRows,
} | per_clip.EXTRACTORS  # each is made of the folder of weights, or None, and a device


@dataclass
class Metrics:
    """Scores, and the extractors that make their rows, by name; `left_out` says of a score why it is not there."""

    extractors: dict[str, Extractor] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def named_scores(names: Collection[str]) -> dict[str, Score]:
    """Raises UserError for a name that is none, with the nearest that is one."""
    for name in names:
        if name not in SCORES:
            near = get_close_matches(name, SCORES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the scores are {', '.join(SCORES)}"
            raise UserError(f"there is no score {name!r}: {hint}")
    return {name: SCORES[name] for name in dict.fromkeys(names)}


def open_metrics(
    names: Sequence[str] | None,
    weights: Path | None,
    device: torch.device,
    *,
    pictures: int = PICTURES,
    files: Mapping[str, Path] | None = None,
    without: Mapping[str, str] | None = None,
) -> Metrics:
    """The scores of these names, or all that can be opened here, with their extractors on the device.

    weights: the folder of the networks' weights (inception/, i3d/, lpips/, clip/, raft/). pictures: frames of a clip
    that Inception sees, 0 for all. files: of "inception" and "i3d", in the place of what `weights` holds.
    without: scores that are of no use here and why: nothing is opened for them.
    Raises UserError where a score that was named cannot be had; the others are left out.
    """
    asked = named_scores(SCORES if names is None else names)
    without = dict(without or {})
    if names is None:
        without |= {name: "only where it is asked for by name" for name in per_clip.ON_REQUEST}
    makers = EXTRACTORS | {"inception": partial(InceptionRows, pictures=pictures)}
    opened: dict[str, Extractor | UserError] = {}
    metrics = Metrics()
    for name, score in asked.items():
        kind = score.extractor
        if kind not in opened and name not in without:
            try:
                opened[kind] = makers[kind]((files or {}).get(kind, weights), device)
            except UserError as error:
                opened[kind] = error
        why = without.get(name) or _unusable(score, opened[kind])
        if why is None:
            metrics.scores[name], metrics.extractors[kind] = score, opened[kind]
        elif names is None:
            metrics.left_out[name] = why
        else:
            raise UserError(f"{name}: {why}")
    return metrics


def _unusable(score: Score, extractor: Extractor | UserError) -> str | None:
    if isinstance(extractor, UserError):
        return str(extractor)
    if isinstance(score, InceptionScore) and not extractor.has_logits:
        return "this Inception network has no logits: install torch-fidelity, and give its weights"
    return None
