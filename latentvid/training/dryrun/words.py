"""Figures and tables as a dry run says them."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent

from ...tables import text_table


def indented(rows: Sequence[Sequence[str]]) -> str:
    return indent(text_table(rows, right=True), "  ")


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while value >= 999.5 and power + 1 < len(units):
        value, power = value / base, power + 1
    return f"{value:.3g} {units[power]}"


def si(value: float) -> str:
    """A number with its unit's prefix, such as "1.23 T", ready for the unit."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E", "Z"))


def in_bytes(value: float) -> str:
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds * 1000:.3g} ms"
