"""Line charts as SVG, drawn without a library so that a page holds them whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .page import note


@dataclass(frozen=True)
class Axis:
    """Maps values low..high (logarithms where `log`) to pixels start..end, and knows its ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Axis:
        """An axis that holds all `values` (above 0 where `log`), and 0 where asked, with room to see them."""
        low, high = (0.0 if zero else min(values)), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        room = 0.04 * (high - low) or 0.5
        return cls(low if zero else low - room, high + room, start, end, log)

    def at(self, value: float) -> float:
        place = math.log10(value) if self.log else value
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis; for logarithms 1, 2, 3, 5, 7 of each power of ten, fewer where that crowds."""
        if not self.log:
            return _round_values(self.low, self.high)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**k for k in decades for d in digits if self.low <= math.log10(d * 10.0**k) <= self.high]
            if len(found) <= 7:
                break
        return found if len(found) > 1 else _round_values(10**self.low, 10**self.high)


def _round_values(low: float, high: float) -> list[float]:
    """Two to seven multiples of 1, 2 or 5 times a power of ten in low..high."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Exponential average over about `span` values, over fewer at the start, where curves fall fast."""
    average, out = 0.0, []
    for i, value in enumerate(values):
        average += (value - average) / max(1.0, min(span, 1 + i / 4))
        out.append(average)
    return out


def line_chart(title: str, points: Sequence[tuple[int, float]], *, log_y: bool) -> str:
    """SVG of (step, value): every step thin, the average thick. Values that a logarithm cannot take are left out."""
    points = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log_y)]
    if not points:
        return note(f"{title}: the log has no values")
    width, height, left, right, top, bottom = 480, 270, 58, 12, 34, 40
    steps, values = zip(*points, strict=True)
    x = Axis.over(steps, left, width - right)
    y = Axis.over(values, height - bottom, top, log=log_y, zero=not log_y)
    average = smooth([math.log(v) for v in values] if log_y else values, len(values) / 40)
    average = [math.exp(v) for v in average] if log_y else average

    def line(series: Sequence[float], kind: str) -> str:
        stride = max(1, len(series) // 1500)
        path = " ".join(f"{x.at(s):.1f},{y.at(v):.1f}" for s, v in list(zip(steps, series, strict=True))[::stride])
        return f'<polyline class="{kind}" points="{path}"/>'

    right_end, floor, grid = width - right, height - bottom, []
    for tick in y.ticks():
        at = f"{y.at(tick):.1f}"
        grid.append(f'<line class="grid" x1="{left}" x2="{right_end}" y1="{at}" y2="{at}"/>')
        grid.append(f'<text x="{left - 8}" y="{at}" dy="4" text-anchor="end">{tick:,.6g}</text>')
    for tick in x.ticks():
        at = f"{x.at(tick):.1f}"
        grid.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{floor}" y2="{floor + 5}"/>')
        grid.append(f'<text x="{at}" y="{floor + 18}" text-anchor="middle">{tick:,.6g}</text>')
    legend = "".join(
        f'<line class="{kind}" x1="{at}" x2="{at + 22}" y1="18" y2="18"/><text x="{at + 28}" y="22">{text}</text>'
        for kind, text, at in (("raw", "step", width - 150), ("mean", "average", width - 86))
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(grid)}'
        f'{line(values, "raw")}{line(average, "mean")}<text class="title" x="12" y="22">{escape(title)}</text>{legend}'
        f'<text x="{width - right}" y="{height - 4}" text-anchor="end">step</text></svg>'
    )
