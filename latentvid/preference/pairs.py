"""The table of pairs: `path`, the preferred clip, `rejected`, the other one, and their `caption`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.manifest.manifest import write_manifest
from ..errors import UserError
from ..words import counted


@dataclass
class Pairs:
    """What a look at clips of equal prompts found. rows: (preferred, other, caption, further columns). ties: of which
    none is preferred. left_out: by reason, how many others are not in the table. first: how often the first folder's
    clip is the preferred one."""

    rows: list[tuple[Path, Path, str, dict[str, Any]]] = field(default_factory=list)
    ties: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    first: int = 0

    def add(
        self, clips: Sequence[Path], caption: str, order: tuple[int, int] | None, more: Sequence[dict[str, Any]]
    ) -> None:
        """clips: of a prompt, one of each folder. order: which is the preferred one, and which the other; None for a
        tie. more: of each clip, what the table is to say of it."""
        if order is None:
            self.ties += 1
            return
        self.first += order[0] == 0
        (path, other), (own, of_other) = ([these[i] for i in order] for these in (clips, more))
        words = {f"preferred_{name}": value for name, value in own.items()}  # a bare `frames` would be a manifest's
        words |= {f"rejected_{name}": value for name, value in of_other.items()}
        self.rows.append((path, other, caption, words))

    def write(self, out: Path) -> str:
        """Writes the table, and says what is in it. Paths inside its folder are relative to it. Raises UserError where
        no pair is left."""
        if not self.rows:
            raise UserError(f"no pair is left: {self._without()}: give more pairs, or another score or question")
        folder = os.path.join(os.path.abspath(out.parent), "")
        table = [
            {"path": os.path.abspath(path), "rejected": os.path.abspath(other).removeprefix(folder), "caption": caption}
            | more
            for path, other, caption, more in self.rows
        ]
        write_manifest(out, table)
        return (
            f"{out}: {counted(len(self.rows), 'pair')}, the first folder's clip preferred in {self.first}; "
            f"{self._without()}"
        )

    def _without(self) -> str:
        others = [f"{count} left out ({reason})" for reason, count in self.left_out.most_common()]
        return ", ".join([f"{self.ties} ties left out", *others])
