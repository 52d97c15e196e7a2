"""Tables of scores with their intervals: of one run, or of several with their differences."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from typing import Any, Literal

from ..evaluation.paired import compare_values
from ..evaluation.summary import numbered
from ..page import note, table
from ..words import counted
from .runs import Run
from .words import words as in_words


@dataclass(frozen=True)
class Score:
    """A score of `count` clips and its interval low..high, None where unknown.

    floor: the score of `floor_count` real clips, by which to read it; floor_of: which those are.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    floor: float | None = None
    floor_count: int | None = None
    floor_of: str | None = None
    better: Literal["lower", "higher", "neither"] = "neither"

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Score:
        """From a file's mapping; what it does not know stays unset."""
        known = {field.name: found[field.name] for field in fields(cls) if found.get(field.name) is not None}
        return cls(**({"value": None} | known))

    @property
    def bounded(self) -> bool:
        return self.low is not None and self.high is not None


def figure(value: float | None) -> str:
    """With as many digits as a reader needs."""
    if value is None:
        return ""
    return (
        f"{value:,.2f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:#.3g}"
    )


def score_table(labels: Sequence[str], scores: Sequence[Mapping[str, Score]]) -> str:
    """A row a score, a column for each of `labels`; with two or more the difference to the first, and what it means.

    A floor is shown beside them: what real clips get.
    """
    names = list(dict.fromkeys(name for found in scores for name in found))
    head = ["", *(escape(label) for label in labels)]
    floors = any(score.floor is not None for found in scores for score in found.values())
    head += ["real clips"] if floors else []
    for label in labels[1:]:
        head += [f"{escape(label)} less {escape(labels[0])}" if len(labels) > 2 else "difference", "intervals"]
    rows = []
    for name in names:
        found = [one.get(name) for one in scores]
        better = next((s.better for s in found if s is not None), "neither")
        hint = {"lower": "less is better", "higher": "more is better"}.get(better, "")
        row = [f'{escape(in_words(name))}<span class="dim">{hint}</span>', *(_cell(score) for score in found)]
        row += [_floor(found)] if floors else []
        for label, score in zip(labels[1:], found[1:], strict=True):
            row += [_difference(found[0], score), _verdict(labels[0], found[0], label, score)]
        rows.append(row)
    return table(head, rows, "scored")


def _cell(score: Score | None) -> str:
    if score is None or score.value is None:
        return '<span class="dim">none</span>'
    about = [f"{figure(score.low)} to {figure(score.high)}"] if score.bounded else []
    about += [counted(score.count, "clip")] if score.count else []
    return f'<b>{figure(score.value)}</b> <span class="dim">{", ".join(about)}</span>'


def _floor(scores: Sequence[Score | None]) -> str:
    """Once, where all of the scores have the same."""
    said = {}
    for score in scores:
        if score is not None and score.floor is not None:
            words = [score.floor_of or "", counted(score.floor_count, "clip") if score.floor_count else ""]
            about = ", ".join(filter(None, words))
            said[f'{figure(score.floor)} <span class="dim">{escape(about)}</span>'] = None
    return "<br>".join(said)


def _difference(first: Score | None, other: Score | None) -> str:
    if first is None or other is None or first.value is None or other.value is None:
        return ""
    difference = other.value - first.value
    return f"{'+' if difference > 0 else ''}{figure(difference)}"


def _verdict(name: str, first: Score | None, label: str, other: Score | None) -> str:
    """Intervals that overlap leave open which is better; the better of two that are apart is named."""
    if first is None or other is None or not (first.bounded and other.bounded):
        return '<span class="dim">not known</span>'
    if first.low <= other.high and other.low <= first.high:
        return '<span class="dim">overlap</span>'
    more = label if other.low > first.high else name
    less = name if more == label else label
    winner = {"higher": more, "lower": less}.get(first.better)
    return f"apart: <b>{escape(winner)}</b> is better" if winner else f"apart: {escape(more)} has more"


def evaluation(runs: Sequence[Run]) -> str:
    """What `python -m latentvid.evaluation --out RUN/evaluation` measured."""
    found = [run.evaluation or {} for run in runs]
    if not any(found):
        return ""
    scores = [{name: Score.of(score) for name, score in (one.get("scores") or {}).items()} for one in found]
    parts = [score_table([run.label if len(runs) > 1 else "score" for run in runs], scores)]
    said = [one.get("settings") or {} for one in found]
    if len(runs) > 1:
        parts.append(unequal_settings([run.label for run in runs], said))
        for run, one in zip(runs[1:], found[1:], strict=True):
            parts.append(_compared(run.label, by_pairs(one, found[0]), runs[0].label))
    for run, one, settings in zip(runs, found, said, strict=True):
        parts.append(_compared(run.label if len(runs) > 1 else "", one.get("compared") or {}, settings.get("against")))
        words = [f"{in_words(key)} {value}" for key, value in settings.items()] + list(map(str, one.get("notes") or ()))
        name = f"{run.label}: " if len(runs) > 1 else ""
        parts.append(f'<p class="dim">{escape(name + "; ".join(words))}</p>' if words else "")
    return "".join(parts)


def by_pairs(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By score, what the clips of one evaluation score less those of the other of the same prompt and seed, or of the
    same name where not all have these: `evaluation.paired.Difference`. Empty where no two clips make a pair."""
    clips = [each.get("clips") or [] for each in (one, other)]
    keys = [{(c.get("caption"), c.get("seed"), c.get("start", 0)): c for c in each
             if c.get("caption") and c.get("seed") is not None} for each in clips]  # fmt: skip
    if any(len(named) < len(each) for named, each in zip(keys, clips, strict=True)):
        folders = [str((each.get("settings") or {}).get("clips", "")) for each in (one, other)]
        keys = [{(os.path.splitext(os.path.relpath(c["file"], folder or "."))[0], c.get("start", 0)): c for c in each}
                for each, folder in zip(clips, folders, strict=True)]  # fmt: skip
    pairs = [(clip, keys[1][key]) for key, clip in keys[0].items() if key in keys[1]]
    pairs = [(a, b) for a, b in pairs if None in (a.get("caption"), b.get("caption")) or a["caption"] == b["caption"]]
    found = {}
    for name, score in (one.get("scores") or {}).items():
        both = [(a["scores"][name], b["scores"][name], a.get("caption") or a["file"]) for a, b in pairs
                if None not in ((a.get("scores") or {}).get(name), (b.get("scores") or {}).get(name))]  # fmt: skip
        if both:
            values, others, units = zip(*both, strict=True)
            found[name] = asdict(compare_values(values, others, numbered(units), score.get("better") or "neither"))
    return found


def _compared(label: str, found: Mapping[str, Mapping[str, Any]], against: Any) -> str:
    """The clips against another model's, pair by pair."""
    rows = []
    for name, one in found.items():
        span = f"{figure(one['low'])} to {figure(one['high'])}" if None not in (one.get("low"), one.get("high")) else ""
        difference = f'<b>{figure(one.get("difference"))}</b> <span class="dim">{span}</span>'
        p, effect, wins = one.get("p"), one.get("effect"), one.get("wins")
        relative = one.get("relative")
        if effect is None and wins is None and relative is not None:
            size = f"{100 * relative:+.1f} %"
        else:
            size = "" if effect is None else f"{effect:+.2f}"
        hint = {"lower": "less is better", "higher": "more is better"}.get(one.get("better") or "", "")
        named = f'{escape(in_words(name))}<span class="dim">{hint}</span>'
        rows.append([
            named, figure(one.get("value")), figure(one.get("other")), difference,
            "" if p is None else f"{p:.2g}", size, "" if wins is None else f"{100 * wins:.0f} %",
            f"{one.get('pairs') or ''}, {one.get('units') or ''} prompts",
        ])  # fmt: skip
    if not rows:
        return ""
    title = f"{label + ': p' if label else 'P'}air by pair against {against}"
    head = ["", "clips", "others", "difference", "p", "effect", "wins", "pairs"]
    return f"<p>{escape(title)}</p>{table(head, rows, 'scored')}"


def unequal_settings(labels: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> str:
    """A warning where scores were taken in different ways, and so do not compare."""
    keys = dict.fromkeys(key for one in settings for key in one)
    wrong = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings[1:])]
    if not wrong:
        return ""
    said = "; ".join(
        f"{in_words(key)}: {', '.join(f'{one.get(key)} ({label})' for label, one in pairs)}"
        for key, pairs in ((key, list(zip(labels, settings, strict=True))) for key in wrong)
    )
    return note(f"The settings of the scores differ, so read the differences with care. {said}")
