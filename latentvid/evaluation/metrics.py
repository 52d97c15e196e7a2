"""All scores and extractors by name, and those of them that can be opened here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .motion.scores import MOTION_SCORES, FlickerRows, MotionRows
from .pairs.scores import PAIR_SCORES, FidelityRows, LpipsRows
from .prompts.clip_similarity import CLIP_SCORES, ClipFrameRows, ClipTextRows
from .rows import Extractor, Score
from .sets.features import PICTURES, I3DRows, InceptionRows
from .sets.scores import SET_SCORES, FrechetScore, InceptionScore, KernelScore
from .sets.video_features import VideoMaeRows, VJepaRows


class Known:
    """Scores by name, and what makes their rows by name.

    An extractor is made of the folder of weights (None: what this machine has by itself) and a device. It raises
    UserError, with the way to get it, where something that it needs is not there.
    """

    def __init__(
        self, scores: Sequence[Score], extractors: Sequence[Callable[[Path | None, torch.device], Extractor]]
    ) -> None:
        self.scores = {score.name: score for score in scores}
        self.extractors = {kind.name: kind for kind in extractors}

    def with_own(self, extractors: Sequence[str]) -> Known:
        """These, and of each extractor MODULE:CLASS the distances of its rows: frechet_NAME and kernel_NAME, where NAME
        is the extractor's. Raises UserError for one that is not there, is no extractor, or has a name that is taken.
        """
        scores, kinds = list(self.scores.values()), list(self.extractors.values())
        for given in extractors:
            kind = _own(given)
            if kind.name in {each.name for each in kinds}:
                raise UserError(f"--extractor {given}: there is an extractor {kind.name!r} already: name it otherwise")
            kinds.append(kind)
            scores += [FrechetScore(f"frechet_{kind.name}", kind.name), KernelScore(f"kernel_{kind.name}", kind.name)]
        return Known(scores, kinds)

    def choose(self, names: Collection[str]) -> Known:
        """The scores of these names. MODULE:NAME is one of another module's `KNOWN`.

        Raises UserError for a name that is none, with the nearest that is one.
        """
        scores, extractors = {}, {}
        for name in dict.fromkeys(names):
            module, _, own = name.rpartition(":")
            known = _known_of(module) if module else self
            if own not in known.scores:
                near = get_close_matches(own, known.scores, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the scores are {', '.join(known.scores)}"
                raise UserError(f"there is no score {name!r}: {hint}")
            score = scores[own] = known.scores[own]
            extractors[score.extractor] = known.extractors[score.extractor]
        return Known(tuple(scores.values()), tuple(extractors.values()))


def _known_of(module: str) -> Known:
    try:
        return import_module(module).KNOWN
    except (ImportError, AttributeError) as error:
        raise UserError(f"{module} has no scores ({error}): give a Python module that has a `KNOWN`") from error


def _own(given: str) -> Callable[[Path | None, torch.device], Extractor]:
    module, _, name = given.rpartition(":")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--extractor {given}: {error}: give MODULE:CLASS, of a module that can be imported") from error
    if missing := [part for part in ("name", "needs", "__call__") if not hasattr(kind, part)]:
        raise UserError(f"--extractor {given} has no {missing[0]}: it must be an Extractor (evaluation/rows.py)")
    return kind


KNOWN = Known(
    (*SET_SCORES, *PAIR_SCORES, *CLIP_SCORES, *MOTION_SCORES),
    (
        InceptionRows,
        I3DRows,
        VideoMaeRows,
        VJepaRows,
        FidelityRows,
        LpipsRows,
        ClipTextRows,
        ClipFrameRows,
        FlickerRows,
        MotionRows,
    ),
)


@dataclass
class Metrics:
    """Scores, and the extractors that make their rows, by name; `left_out` says of a score why it is not there."""

    extractors: dict[str, Extractor] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def remarks(self, rows: Mapping[str, Sequence[Tensor]]) -> list[str]:
        """What a reader must know of the rows of clips, by extractor: what those say that have `remarks`."""
        speaking = {kind: found for kind, found in self.extractors.items() if hasattr(found, "remarks")}
        return [said for kind, extractor in speaking.items() for said in extractor.remarks(rows[kind])]


def open_metrics(
    names: Sequence[str] | None,
    weights: Path | None,
    device: torch.device,
    *,
    pictures: int = PICTURES,
    resize: str | None = None,
    own: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
    without: Mapping[str, str] | None = None,
) -> Metrics:
    """The scores of these names, or all that can be opened here, with their extractors on the device.

    weights: the folder of the networks' weights (inception/, i3d/, videomae/, vjepa/, lpips/, clip/, raft/). pictures:
    frames of a clip that Inception sees, 0 for all. resize: of them (`load_inception`). own: extractors of other
    modules, as `Known.with_own` takes them. files: of "inception" and "i3d", instead of what `weights` holds.
    without: scores that are of no use here and why: nothing is opened for them.
    Raises UserError where a score that was named cannot be had; the others are left out.
    """
    known, without = KNOWN.with_own(own), without or {}
    known = known if names is None else known.choose(names)
    makers = known.extractors | {"inception": partial(InceptionRows, pictures=pictures, resize=resize)}
    opened: dict[str, Extractor | UserError] = {}
    metrics = Metrics()
    for name, score in known.scores.items():
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
