"""A picture of a latent report: spectra, each channel's spread, and how channels go together. SVG by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...charts import Axis

WIDTH, HEIGHT, GAP = 330, 250, 14
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 34, 40
BLUE, RED, GREY, INK = "#2563d9", "#c4282d", "#dfe2e7", "#3a3f4a"


def draw_latents(report: dict[str, Any]) -> str:
    """SVG of `LatentQuality.report`'s figures: spectra (log-log), mean and std by channel, channels' correlation."""
    panels = [_spectra(report), _channels(report), _correlation(report["correlation"])]
    moved = "".join(f'<g transform="translate({i * (WIDTH + GAP)} 0)">{p}</g>' for i, p in enumerate(panels))
    whole = len(panels) * (WIDTH + GAP) - GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {HEIGHT}" width="{whole}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="{INK}">'
        f'<rect width="{whole}" height="{HEIGHT}" fill="#fff"/>{moved}</svg>\n'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{text}</text>'


def _frame(title: str, x: Axis | None, y: Axis | None, below: str) -> str:
    parts = [
        _text(8, 18, title, more='font-weight="600" font-size="12.5"'),
        _text(WIDTH - RIGHT, HEIGHT - 6, below, anchor="end"),
    ]
    for tick in y.ticks() if y else ():
        at = y.at(tick)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="{GREY}"/>')
        parts.append(_text(LEFT - 6, at + 4, f"{tick:,.3g}", anchor="end"))
    for tick in x.ticks() if x else ():
        parts.append(_text(x.at(tick), HEIGHT - BOTTOM + 16, f"{tick:,.3g}", anchor="middle"))
    return "".join(parts)


def _spectra(report: dict[str, Any]) -> str:
    curves = [(name, report["spectrum"][name], colour) for name, colour in (("space", BLUE), ("time", RED))]
    curves = [(name, curve, colour) for name, curve, colour in curves if curve]
    title = "power by frequency"
    if not curves:
        return _frame(title, None, None, "clips are too small for a spectrum")
    floor = 1e-12  # what a logarithm can take
    x = Axis.over([f for _, c, _ in curves for f in c["frequency"]], LEFT, WIDTH - RIGHT, log=True)
    y = Axis.over([max(p, floor) for _, c, _ in curves for p in c["power"]], HEIGHT - BOTTOM, TOP, log=True)
    parts = [_frame(title, x, y, "cycles a latent position")]
    for i, (name, curve, colour) in enumerate(curves):
        rows = zip(curve["frequency"], curve["power"], strict=True)
        points = " ".join(f"{x.at(f):.1f},{y.at(max(p, floor)):.1f}" for f, p in rows)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        label = f"{name}: slope {curve['slope']:.2f}"
        parts.append(_text(WIDTH - RIGHT, TOP + 12 + 15 * i, label, anchor="end", more=f'style="fill:{colour}"'))
    return "".join(parts)


def _channels(report: dict[str, Any]) -> str:
    mean, std = report["mean"], report["std"]
    reach = [m + side * s for m, s in zip(mean, std, strict=True) for side in (-1, 1)]
    y = Axis.over([*reach, 0.0], HEIGHT - BOTTOM, TOP)
    step = (WIDTH - RIGHT - LEFT) / len(mean)
    parts = [_frame("mean and standard deviation", None, y, f"channel, 1 to {len(mean)}")]
    for i, (m, s) in enumerate(zip(mean, std, strict=True)):
        x = LEFT + (i + 0.5) * step
        wide = max(1.0, 0.6 * step)
        line = f"M{x:.1f} {y.at(m - s):.1f}V{y.at(m + s):.1f}"
        parts.append(f'<path d="{line}" stroke="{BLUE}" stroke-width="{wide:.1f}" opacity=".45"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y.at(m):.1f}" r="1.8" fill="{BLUE}"/>')
    return "".join(parts)


def _correlation(matrix: Sequence[Sequence[float]]) -> str:
    side = (HEIGHT - TOP - BOTTOM) / len(matrix)
    left = (WIDTH - (HEIGHT - TOP - BOTTOM)) / 2
    parts = [_frame("correlation of channels", None, None, "blue +1, white 0, red -1")]
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            colour, strength = (BLUE if value > 0 else RED), min(1.0, abs(value))
            if strength > 0.01:
                place = f'x="{left + j * side:.2f}" y="{TOP + i * side:.2f}" width="{side:.2f}" height="{side:.2f}"'
                parts.append(f'<rect {place} fill="{colour}" fill-opacity="{strength:.2f}"/>')
    edge = HEIGHT - TOP - BOTTOM
    parts.append(f'<rect x="{left:.1f}" y="{TOP}" width="{edge}" height="{edge}" fill="none" stroke="{GREY}"/>')
    return "".join(parts)
