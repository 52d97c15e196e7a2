"""Counts in messages."""

from numbers import Integral


def counted(n: float, noun: str) -> str:
    """A number with its noun, whose plural is regular: "1 frame", "1,200 frames", "2 processes", "12.5 frames"."""
    said = f"{n:,}" if isinstance(n, Integral) else f"{n:g}"
    return f"{said} {noun}" + ("" if n == 1 else "es" if noun.endswith("s") else "s")
