"""Where the weights come from that a run begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Origin:
    """The weights that a model begins with. where: in words. taken, total: parameters that come from there, and all.
    left: what does not, in words by kind."""

    where: str
    taken: int
    total: int
    left: dict[str, list[str]] = field(default_factory=dict)

    def summary(self) -> str:
        new = self.total - self.taken
        lines = [f"init: {self.taken:,} of {self.total:,} parameters ({self.taken / self.total:.2%}) from {self.where}"]
        lines += [f"  {new:,} ({new / self.total:.2%}) are new"] if new else []
        return "\n".join(lines + [f"  {kind}: {few(names)}" for kind, names in self.left.items() if names])


@dataclass(frozen=True)
class Base:
    """Weights that stay what they are, and are read again from where they come from: checkpoints do not hold them.

    where: in words. fingerprint: of them, so that a run goes on with the same ones alone.
    """

    where: str
    fingerprint: str


def few(names: Sequence[str], most: int = 20) -> str:
    """A list in words, the first of them by name."""
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
