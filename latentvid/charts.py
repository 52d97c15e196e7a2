"""Charts as SVG, for pages and as files of their own: the one plotter there is (docs/dependencies.md says why).

Colours are CSS: `PALETTE` names variables that a page's style gives a value for light and for dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

PALETTE = tuple(f"var(--c{i})" for i in range(6))
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 250, 58, 12, 10, 40
HEAD = 46  # pixels for the title and the legend of a chart in a file
FILE_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#5b6472}.title{font-size:13px;font-weight:600;fill:#1c1f26}"
    ".grid{stroke:#e2e5ea}line.mark{stroke:#5b6472;stroke-dasharray:2 3}"
    "polyline{fill:none;stroke:var(--c);stroke-width:1.8}.raw{stroke-width:1;opacity:.6}"
    ".mean{stroke-width:2.4}.dashed{stroke-dasharray:5 4}circle{fill:var(--c)}.span{stroke:var(--c)}"
)
POINTS = 400  # most of a line: what its width in pixels can show
Scale = Literal["log", "zero", "fit"]  # logarithmic, from 0, or as the values are


@dataclass(frozen=True)
class Axis:
    """Maps values low..high (logarithms where `log`) to pixels start..end. steps: its ticks, where it ends in some."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    steps: tuple[float, ...] = ()

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Axis:
        """An axis that holds all `values` (above 0 where `log`), and 0 where asked, and ends in ticks."""
        low, high = (min(0.0, *values) if zero else min(values)), max(values)
        if log and high >= 3 * low:
            ticks = _powers(low, high)
        elif log and high == low:
            ticks = _powers(low / 2, high * 2)
        else:  # also of near values, among which logarithms have few round ones
            ticks = _round_around(low, high)
        ends = (math.log10(end) if log else end for end in (ticks[0], ticks[-1]))
        return cls(*ends, start, end, log, tuple(ticks))

    def at(self, value: float) -> float:
        place = math.log10(value) if self.log else value
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis, its ends among them."""
        return list(self.steps or _round_around(self.low, self.high))


def _powers(low: float, high: float) -> list[float]:
    """1, 2, 3, 5, 7 of each power of ten, from at most low (above 0) to at least high; fewer where that crowds."""
    for digits, apart in (
        ((1, 2, 3, 5, 7), 1),
        ((1, 2, 5), 1),
        ((1, 3), 1),
        ((1,), 1),
        ((1,), 2),
        ((1,), 5),
        ((1,), 20),
    ):
        first, last = (apart * end(math.log10(v) / apart) for end, v in ((math.floor, low), (math.ceil, high)))
        every = [float(f"{d}e{k}") for k in range(first, last + 1, apart) for d in digits]
        below = [value for value in every if value <= low]
        found = [*below[-1:], *(value for value in every if low < value < high), min(v for v in every if v >= high)]
        if len(found) <= 8:
            break
    return found


def _round_around(low: float, high: float) -> list[float]:
    """Three to eight multiples of 1, 2 or 5 times a power of ten, from at most low to at least high."""
    if high <= low:
        room = max(0.5, 1e-3 * abs(high))  # of large numbers 0.5 is nothing
        low, high = (low if low == 0 else low - room), high + room
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Average around each value, over about `span` of them, over fewer at the start, where curves fall fast.

    It is a local line's value (local linear regression, Cleveland 1979, all of equal weight): within the curve the mean
    of a centred window, and at the ends, whose windows have one side, no less centred. So a straight line stays what it
    is, and an average does not lag behind a falling loss.
    """
    y = np.asarray(values, dtype=float)
    count = len(y)
    if not count:
        return []
    here = np.arange(count)
    half = np.maximum(1, np.minimum(span / 2, 1 + here / 4)).astype(int)
    low, high = np.maximum(here - half, 0), np.minimum(here + half, count - 1)
    sums = (np.concatenate([[0.0], np.cumsum(row)]) for row in (y - y.mean(), here * (y - y.mean())))
    total, moment = (row[high + 1] - row[low] for row in sums)
    number, middle = high - low + 1, (high + low) / 2
    spread = number * (number**2 - 1) / 12  # sum of (x - middle)^2
    slope = np.divide(moment - middle * total, spread, out=np.zeros(count), where=spread > 0)
    return (y.mean() + total / number + slope * (here - middle)).tolist()


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
    that a logarithm cannot take, are left out. colour: CSS. kind: "line" with a dot a point that says its values,
    "dots" the dots alone; "mean" thick, "raw" thin, both without dots. low, high: [n], of each point's interval.
    dashed: how it is drawn.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str = PALETTE[0]
    kind: Literal["line", "dots", "mean", "raw"] = "line"
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dashed: bool = False

    def shown(self, log_x: bool, log: bool) -> np.ndarray:
        """Which points can be drawn, [n] bool."""
        return _drawable(self.x, log_x) & _drawable(self.y, log)

    def extent(self, shown: np.ndarray, log: bool) -> list[float]:
        """Lowest and highest y of the points shown, their intervals included."""
        columns = [column[shown] for column in (self.y, self.low, self.high) if column is not None]
        values = np.concatenate([column[_drawable(column, log)] for column in columns])
        return [float(values.min()), float(values.max())]


def _drawable(values: np.ndarray, log: bool) -> np.ndarray:
    return np.isfinite(values) & ((values > 0) | (not log))


class Key(NamedTuple):
    """Of a legend. kind: as a line's, or "band"."""

    label: str
    colour: str
    kind: str
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """inside: SVG of `WIDTH` x `HEIGHT`; "" where there is nothing to draw."""

    title: str
    inside: str
    legend: Sequence[Key] = ()

    def html(self) -> str:
        """A figure with its title and legend; "" where there is nothing to draw."""
        if not self.inside:
            return ""
        title = escape(self.title)
        keys = "".join(
            f'<span class="key"><i class="{kind}{" dashed" * dashed}" style="--c:{colour}"></i>{escape(label)}</span>'
            for label, colour, kind, dashed in self.legend
            if label
        )
        return (
            f'<figure class="chart"><figcaption><b>{title}</b>{keys}</figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{self.inside}</svg></figure>'
        )


def plot(
    title: str,
    lines: Sequence[Line],
    *,
    scale: Scale = "fit",
    x_scale: Scale = "fit",
    x_label: str = "step",
    hold_x: Sequence[float] = (),
    hold_y: Sequence[float] = (),
    marks: Sequence[tuple[float, str]] = (),
) -> Chart:
    """Lines over common axes, with a legend.

    hold_x, hold_y: values that the axes hold besides, so that several charts have the same. marks: places along x, with
    what begins there; those outside the axis are left out.
    """
    log_x, log = x_scale == "log", scale == "log"
    shown = [(line, line.shown(log_x, log)) for line in lines]
    shown = [(line, points) for line, points in shown if points.any()]
    if not shown:
        return Chart(title, "")
    x_values, y_values = list(hold_x), [value for value in hold_y if value > 0 or not log]
    for line, points in shown:
        x_values += [float(line.x[points].min()), float(line.x[points].max())]
        y_values += line.extent(points, log)
    x = Axis.over(x_values, LEFT, WIDTH - RIGHT, log=log_x, zero=x_scale == "zero")
    y = Axis.over(y_values, HEIGHT - BOTTOM, TOP, log=log, zero=scale == "zero")
    order = sorted(shown, key=lambda pair: pair[0].kind != "raw")  # thin lines below the others
    drawn = "".join(_line(line, points, x, y, x_label) for line, points in order)
    legend = [Key(n.label, n.colour, n.kind, n.dashed) for n, _ in shown]
    return Chart(title, _grid(x, y, x_label) + _marks(marks, x) + drawn, legend)


def chart(title: str, lines: Sequence[Line], **options) -> str:
    """`plot` as a figure of a page."""
    return plot(title, lines, **options).html()


def stacked(title: str, x: np.ndarray, shares: dict[str, np.ndarray], rest: str) -> str:
    """Shares of a whole, 0..1, as bands above each other; `rest` names what they leave.

    x: [n], increasing. shares: [n] for each name, from the bottom up.
    """
    if not len(x):
        return Chart(title, "").html()
    edges = np.unique(np.linspace(0, len(x), min(len(x), 150) + 1).astype(int))
    means = lambda values: np.array([values[a:b].mean() for a, b in pairwise(edges)])  # noqa: E731
    steps, tops, bands = means(x), np.zeros(len(edges) - 1), []
    x_axis = Axis.over([float(steps[0]), float(steps[-1])], LEFT, WIDTH - RIGHT)
    y_axis = Axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    colours = [*(PALETTE[i % len(PALETTE)] for i in range(len(shares))), "var(--rest)"]
    for colour, (name, values) in zip(colours, [*shares.items(), (rest, np.ones(len(x)))], strict=True):
        below, tops = tops, np.clip(tops + means(np.nan_to_num(values)), 0.0, 1.0)
        outline = [*zip(steps, tops, strict=True), *reversed(list(zip(steps, below, strict=True)))]
        path = " ".join(f"{x_axis.at(s):.1f},{y_axis.at(v):.1f}" for s, v in outline)
        bands.append(f'<polygon style="fill:{colour}" points="{path}"><title>{escape(name)}</title></polygon>')
    legend = [Key(name, colour, "band") for name, colour in zip([*shares, rest], colours, strict=True)]
    return Chart(title, "".join(bands) + _grid(x_axis, y_axis, "step"), legend).html()


def squares(title: str, matrix: np.ndarray, above: Key, below: Key) -> Chart:
    """A square matrix of values in -1..1: the colour of `above` 0, or of `below` 0, as strong as the value."""
    edge = HEIGHT - TOP - BOTTOM
    side, left = edge / len(matrix), (WIDTH - edge) / 2
    parts = [f'<rect class="grid" x="{left:.1f}" y="{TOP}" width="{edge}" height="{edge}" fill="none"/>']
    for (i, j), value in np.ndenumerate(matrix):
        place = f'x="{left + j * side:.2f}" y="{TOP + i * side:.2f}" width="{side:.2f}" height="{side:.2f}"'
        colour = (above if value > 0 else below).colour
        parts.append(f'<rect {place} style="fill:{colour}" fill-opacity="{min(1.0, abs(value)):.2f}"/>')
    return Chart(title, "".join(parts), (above, below))


def _grid(x: Axis, y: Axis, x_label: str) -> str:
    floor, parts = HEIGHT - BOTTOM, []
    for tick in y.ticks():
        at = f"{y.at(tick):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at}" dy="4" text-anchor="end">{short(tick)}</text>')
    for tick in x.ticks():
        at = f"{x.at(tick):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{floor}" y2="{floor + 5}"/>')
        middle = min(x.at(tick), WIDTH - 2 - 3.3 * len(short(tick)))  # the last one ends within the chart
        parts.append(f'<text x="{middle:.1f}" y="{floor + 18}" text-anchor="middle">{short(tick)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(parts)


def _marks(marks: Sequence[tuple[float, str]], x: Axis) -> str:
    """An upright line at each place, with its name."""
    parts = []
    for at, name in marks:
        if LEFT <= (place := x.at(at)) <= WIDTH - RIGHT:
            parts.append(f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text class="mark" x="{place + 4:.1f}" y="{TOP + 10}">{escape(name)}</text>')
    return "".join(parts)


def _line(line: Line, shown: np.ndarray, x: Axis, y: Axis, x_label: str) -> str:
    xs, ys = thin(line.x[shown], line.y[shown])
    parts = []
    if line.kind != "dots":
        points = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in zip(xs, ys, strict=True))
        parts.append(f'<polyline class="{line.kind}{" dashed" * line.dashed}" points="{points}"/>')
    if line.kind in ("line", "dots") and shown.sum() <= 100:  # more dots than that hide the line
        none = np.full(len(line.x), np.nan)
        low, high = (none if ends is None else ends for ends in (line.low, line.high))
        parts += [_dot(line.label, x, y, x_label, *at) for at in zip(xs, ys, low[shown], high[shown], strict=True)]
    return f'<g style="--c:{line.colour}">{"".join(parts)}</g>'


def _dot(label: str, x: Axis, y: Axis, x_label: str, at: float, value: float, low: float, high: float) -> str:
    """A point that says its values when pointed at, with its interval."""
    said, span, place = f"{label}: {value:.5g}, {x_label} {at:,.6g}", "", f"{x.at(at):.1f}"
    if math.isfinite(low) and math.isfinite(high) and (low > 0 or not y.log):
        said += f" ({low:.5g} to {high:.5g})"
        ends = f'y1="{y.at(low):.1f}" y2="{y.at(high):.1f}"'
        span = f'<line class="span" x1="{place}" x2="{place}" {ends}/>'
    title = f"<title>{escape(said.strip(': '))}</title>"
    return f'{span}<circle cx="{place}" cy="{y.at(value):.1f}" r="2.6">{title}</circle>'


def short(value: float) -> str:
    """A number as a tick says it: 0.05, 2,000, 120k, 1.5M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):,.4g}{unit}"
    return f"{value:,.6g}"


def svg_file(charts: Sequence[Chart], columns: int = 2) -> str:
    """A picture that needs no page, white: `columns` charts side by side."""
    parts = []
    for number, one in enumerate(charts):
        left, top = number % columns * WIDTH, number // columns * (HEIGHT + HEAD)
        words, at = [f'<text class="title" x="12" y="20">{escape(one.title)}</text>'], 14
        for key in (key for key in one.legend if key.label):
            words.append(f'<text x="{at}" y="38" style="fill:{key.colour}">{escape(key.label)}</text>')
            at += 24 + 7 * len(key.label)
        inside = one.inside or f'<text x="{LEFT}" y="{HEIGHT // 2}">no values</text>'
        inside = f'<svg y="{HEAD}" width="{WIDTH}" height="{HEIGHT}">{inside}</svg>'
        parts.append(f'<g transform="translate({left} {top})">{"".join(words)}{inside}</g>')
    width, height = columns * WIDTH, -(-len(charts) // columns) * (HEIGHT + HEAD)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{FILE_STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
