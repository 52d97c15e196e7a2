"""Charts as SVG, drawn without a library so that a page holds them whole.

Colours are CSS: `PALETTE` names variables that the page's style gives a value for light and for dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

import numpy as np

from .page import note

PALETTE = tuple(f"var(--c{i})" for i in range(6))
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 250, 58, 12, 10, 40
HEAD = 46  # pixels for the title and the legend of a chart in a file
FILE_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#5b6472}.title{font-size:13px;font-weight:600;fill:#1c1f26}"
    ".grid{stroke:#e2e5ea}polyline{fill:none;stroke:var(--c);stroke-width:1.8}.raw{stroke-width:1;opacity:.6}"
    ".mean{stroke-width:2.4}.dashed{stroke-dasharray:5 4}circle{fill:var(--c)}.span{stroke:var(--c)}"
)
POINTS = 400  # most of a line: what its width in pixels can show


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
        room = 0.04 * (high - low) or max(0.5, 1e-3 * abs(high))  # of large numbers 0.5 is nothing
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


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `points` of the points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(y) <= points:
        return x, y
    keep = {0, len(y) - 1}
    for a, b in pairwise(np.linspace(0, len(y), points // 2 + 1).astype(int)):
        keep |= {int(a + np.argmin(y[a:b])), int(a + np.argmax(y[a:b]))}
    order = sorted(keep)
    return x[order], y[order]


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    label: in the legend; "" is none. x, y: [n], any order of x that a line can follow; points that are not finite, or
    that a logarithm cannot take, are left out. colour: CSS. kind: "line" with a dot a point that says its values;
    "mean" thick, "raw" thin, both without dots. low, high: [n], of each point's interval. dashed: how it is drawn.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str = PALETTE[0]
    kind: Literal["line", "mean", "raw"] = "line"
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dashed: bool = False

    def shown(self, log: bool) -> np.ndarray:
        """Which points can be drawn, [n] bool."""
        return np.isfinite(self.x) & np.isfinite(self.y) & ((self.y > 0) | (not log))


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    scale: Literal["log", "zero", "fit"] = "fit",
    x_label: str = "step",
    hold_x: Sequence[float] = (),
    hold_y: Sequence[float] = (),
) -> str:
    """A figure of lines over common axes, with a legend.

    scale: of y: logarithmic, from 0, or as the values are. hold_x, hold_y: values that the axes hold besides, so that
    several charts have the same.
    """
    log = scale == "log"
    lines = [line for line in lines if line.shown(log).any()]
    if not lines:
        return note(f"{title}: the log has no values")
    x_values, y_values = list(hold_x), [value for value in hold_y if value > 0 or not log]
    for line in lines:
        shown = line.shown(log)
        x_values += [float(line.x[shown].min()), float(line.x[shown].max())]
        for values in (line.y, line.low, line.high):
            kept = values[shown] if values is not None else np.empty(0)
            kept = kept[np.isfinite(kept) & ((kept > 0) | (not log))]
            y_values += [float(kept.min()), float(kept.max())] if len(kept) else []
    x = Axis.over(x_values, LEFT, WIDTH - RIGHT)
    y = Axis.over(y_values, HEIGHT - BOTTOM, TOP, log=log, zero=scale == "zero")
    order = sorted(lines, key=lambda line: line.kind != "raw")  # thin lines below the others
    drawn = "".join(_line(line, x, y, x_label) for line in order)
    return _figure(title, _grid(x, y, x_label) + drawn, [(n.label, n.colour, n.kind, n.dashed) for n in lines])


def stacked(title: str, x: np.ndarray, shares: dict[str, np.ndarray], rest: str) -> str:
    """Shares of a whole, 0..1, as bands above each other; `rest` names what they leave.

    x: [n], increasing. shares: [n] for each name, from the bottom up.
    """
    if not len(x):
        return note(f"{title}: the log has no values")
    edges = np.unique(np.linspace(0, len(x), min(len(x), 150) + 1).astype(int))
    steps = np.array([x[a:b].mean() for a, b in pairwise(edges)])
    tops, bands = np.zeros(len(steps)), []
    x_axis = Axis.over([float(steps[0]), float(steps[-1])], LEFT, WIDTH - RIGHT)
    y_axis = Axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    colours = [*(PALETTE[i % len(PALETTE)] for i in range(len(shares))), "var(--rest)"]
    for colour, (name, values) in zip(colours, [*shares.items(), (rest, None)], strict=True):
        below = tops
        if values is None:
            tops = np.ones(len(steps))
        else:
            part = np.array([np.nan_to_num(values[a:b]).mean() for a, b in pairwise(edges)])
            tops = np.clip(below + part, 0.0, 1.0)
        outline = [*zip(steps, tops, strict=True), *reversed(list(zip(steps, below, strict=True)))]
        path = " ".join(f"{x_axis.at(s):.1f},{y_axis.at(v):.1f}" for s, v in outline)
        bands.append(f'<polygon style="fill:{colour}" points="{path}"><title>{escape(name)}</title></polygon>')
    legend = [(name, colour, "band", False) for name, colour in zip([*shares, rest], colours, strict=True)]
    return _figure(title, "".join(bands) + _grid(x_axis, y_axis, "step"), legend)


def _figure(title: str, inside: str, legend: Sequence[tuple[str, str, str, bool]]) -> str:
    """legend: label, colour, kind and whether dashed, for each line."""
    keys = "".join(
        f'<span class="key"><i class="{kind}{" dashed" * dashed}" style="--c:{colour}"></i>{escape(label)}</span>'
        for label, colour, kind, dashed in legend
        if label
    )
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{keys}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{inside}</svg></figure>'
    )


def _grid(x: Axis, y: Axis, x_label: str) -> str:
    floor, parts = HEIGHT - BOTTOM, []
    for tick in y.ticks():
        at = f"{y.at(tick):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at}" dy="4" text-anchor="end">{short(tick)}</text>')
    for tick in x.ticks():
        at = f"{x.at(tick):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{floor}" y2="{floor + 5}"/>')
        parts.append(f'<text x="{at}" y="{floor + 18}" text-anchor="middle">{short(tick)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(parts)


def _line(line: Line, x: Axis, y: Axis, x_label: str) -> str:
    shown = line.shown(y.log)
    xs, ys = thin(line.x[shown], line.y[shown])
    points = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in zip(xs, ys, strict=True))
    parts = [f'<polyline class="{line.kind}{" dashed" * line.dashed}" points="{points}"/>']
    if line.kind == "line" and shown.sum() <= 100:  # more dots than that hide the line
        spans = (
            ((None, None) for _ in xs)
            if line.low is None or line.high is None
            else zip(line.low[shown], line.high[shown], strict=True)
        )
        parts += [_dot(line.label, x, y, x_label, *p, *s) for *p, s in zip(xs, ys, spans, strict=True)]
    return f'<g style="--c:{line.colour}">{"".join(parts)}</g>'


def _dot(label: str, x: Axis, y: Axis, x_label: str, at: float, value: float, low: float, high: float) -> str:
    said, span = f"{label}: {value:.5g}, {x_label} {at:,.6g}", ""
    if low is not None and math.isfinite(low) and math.isfinite(high) and (low > 0 or not y.log):
        said += f" ({low:.5g} to {high:.5g})"
        ends = f'y1="{y.at(low):.1f}" y2="{y.at(high):.1f}"'
        span = f'<line class="span" x1="{x.at(at):.1f}" x2="{x.at(at):.1f}" {ends}/>'
    dot = (
        f'<circle cx="{x.at(at):.1f}" cy="{y.at(value):.1f}" r="2.6"><title>{escape(said.strip(": "))}</title></circle>'
    )
    return span + dot


def short(value: float) -> str:
    """A number as a tick says it: 0.05, 2,000, 120k, 1.5M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):,.4g}{unit}"
    return f"{value:,.6g}"


def svg_file(charts: Sequence[tuple[str, Sequence[Line], Literal["log", "zero", "fit"], str]], columns: int = 2) -> str:
    """A picture that needs no page: (title, lines, scale, x_label) of each chart, `columns` of them side by side."""
    parts = []
    for number, (title, lines, scale, x_label) in enumerate(charts):
        left, top = number % columns * WIDTH, number // columns * (HEIGHT + HEAD)
        drawn = chart(title, lines, scale=scale, x_label=x_label)
        inside = drawn[drawn.index("<svg") : drawn.index("</svg>") + 6].replace(
            "<svg", f'<svg y="{HEAD}" width="{WIDTH}" height="{HEIGHT}"', 1
        )
        words, at = [f'<text class="title" x="12" y="20">{escape(title)}</text>'], 14
        for line in (line for line in lines if line.label):
            words.append(f'<text x="{at}" y="38" style="fill:{line.colour}">{escape(line.label)}</text>')
            at += 24 + 7 * len(line.label)
        parts.append(f'<g transform="translate({left} {top})">{"".join(words)}{inside}</g>')
    width, height = columns * WIDTH, -(-len(charts) // columns) * (HEIGHT + HEAD)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{FILE_STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
