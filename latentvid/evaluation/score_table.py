"""Scores of clips as files and tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..tables import markdown_table, text_table
from ..versions import installed
from .clip_folder import Skipped
from .intervals import LEVEL
from .paired import Difference
from .summary import Result

PACKAGES = ("latentvid", "torch", "torchvision", "torchmetrics", "transformers", "torch-fidelity", "av")
HEAD = ("score", "value", f"{LEVEL:.0%} interval", "clips", "real against real", "of", "better")
PAIRED = ("score", "clips", "others", "difference", f"{LEVEL:.0%} interval", "p", "effect", "wins", "pairs", "prompts")
FILES = ("scores.json", "scores.md")
SHOWN = 10  # skipped files in scores.md; scores.json lists all


@dataclass
class Scored:
    """What was found: `Result` by score, the differences to another model's clips, why other scores are not there, what
    the reader must know, what is not in it, and the scores of each clip by itself (`extremes.as_rows`)."""

    settings: dict[str, Any]
    results: dict[str, Result] = field(default_factory=dict)
    compared: dict[str, Difference] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    clips: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """What scores.json holds."""
        return {
            "settings": self.settings,
            "counts": self.counts,
            "scores": {name: asdict(result) for name, result in self.results.items()},
            **({"compared": {n: asdict(found) for n, found in self.compared.items()}} if self.compared else {}),
            "left_out": self.left_out,
            "notes": self.notes,
            "skipped": [fault._asdict() for fault in self.skipped],
            "clips": self.clips,
            "versions": installed(PACKAGES),
        }

    def write(self, folder: Path) -> None:
        """scores.json and scores.md."""
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n"
        for name, content in zip(FILES, (text, self.markdown()), strict=True):
            write_whole(folder / name, content)

    def table(self) -> list[tuple[str, ...]]:
        """The cells of each score, in the order of `HEAD`."""
        rows = []
        for name, result in self.results.items():
            span = "" if result.low is None else f"{_short(result.low)} to {_short(result.high)}"
            clips = f"{result.count}" if result.real_count is None else f"{result.count} and {result.real_count}"
            floor = "" if result.floor is None else _short(result.floor)
            of = "" if result.floor is None else f"{result.floor_count}: {result.floor_of}"
            rows.append((name, _short(result.value), span, clips, floor, of, result.better))
        return rows

    def paired(self) -> list[tuple[str, ...]]:
        """The cells of each difference, in the order of `PAIRED`."""
        rows = []
        for name, found in self.compared.items():
            span = "" if found.low is None else f"{_short(found.low)} to {_short(found.high)}"
            p = "" if found.p is None else f"{found.p:.2g}"
            effect = "" if found.effect is None else f"{found.effect:+.2f}"
            if found.effect is None and found.wins is None and found.relative is not None:
                effect = f"{100 * found.relative:+.1f} %"
            wins = "" if found.wins is None else f"{100 * found.wins:.0f} %"
            values = map(_short, (found.value, found.other, found.difference))
            rows.append((name, *values, span, p, effect, wins, f"{found.pairs}", f"{found.units}"))
        return rows

    def text(self) -> str:
        """For the terminal."""
        compared = ["", text_table([PAIRED, *self.paired()])] if self.compared else []
        return "\n".join([text_table([HEAD, *self.table()]), *compared, "", *self._remarks()])

    def markdown(self) -> str:
        settings = {k: v for k, v in self.settings.items() if k != "extractors" and v is not None} | installed(PACKAGES)
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items())
        parts = [
            "# Scores",
            f"{counts}.",
            markdown_table(HEAD, self.table()),
            *([markdown_table(PAIRED, self.paired())] if self.compared else []),
            "\n".join(f"- {remark}" for remark in self._remarks()),
            markdown_table(("setting", "value"), [(name, str(value)) for name, value in settings.items()]),
        ]
        if self.skipped:
            faults = [f"- {fault.file}: {fault.reason}" for fault in self.skipped[:SHOWN]]
            more = [f"- and {len(self.skipped) - SHOWN} more"] if len(self.skipped) > SHOWN else []
            parts.append("\n".join(["Skipped:", *faults, *more]))
        return "\n\n".join(parts) + "\n"

    def _remarks(self) -> Sequence[str]:
        reasons = Counter((fault.extractor, fault.reason) for fault in self.skipped)
        skipped = [
            f"{count} skipped{f' for {extractor}' if extractor else ''}: {reason}"
            for (extractor, reason), count in reasons.most_common(SHOWN)
        ]
        names: dict[str, list[str]] = {}
        for name, why in self.left_out.items():
            names.setdefault(why, []).append(name)
        return [*self.notes, *skipped, *(f"left out: {', '.join(alike)}: {why}" for why, alike in names.items())]


def _short(number: float) -> str:
    """Four digits that count."""
    return f"{number:.1f}" if abs(number) >= 1000 else f"{number:.4g}"
