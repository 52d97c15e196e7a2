"""Charts hold their data, leave out what cannot be drawn, and stay small."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from latentvid.charts import Axis, Key, Line, chart, plot, short, smooth, squares, stacked, svg_file, thin


def line(x, y, **kwargs) -> Line:
    return Line("a", np.array(x, dtype=float), np.array(y, dtype=float), **kwargs)


def points(text: str) -> list[list[tuple[float, float]]]:
    """Of each polyline or polygon, in pixels."""
    return [[tuple(map(float, p.split(","))) for p in found.split()] for found in re.findall(r'points="([^"]*)"', text)]


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.5, 0.3], True),
        ([0.301, 0.302], True),
        ([1e-9, 1e9], True),
        ([7.0], True),
        ([0.013, 4.4], True),
        ([0.0], False),
        ([1e6], False),
        ([1, 1400], False),
        ([-3.5, 2], False),
    ],
)
def test_axes_hold_their_values_and_a_few_ticks(values, log):
    axis = Axis.over(values, 100, 20, log=log, zero=not log)
    assert all(20 <= axis.at(value) <= 100 for value in values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9 and all(19.99 <= axis.at(tick) <= 100.01 for tick in ticks)
    assert (axis.at(ticks[0]), axis.at(ticks[-1])) == pytest.approx((100, 20))  # it ends in ticks


def test_a_chart_leaves_out_what_it_cannot_draw():
    text = chart("loss", [line([1, 2, 3, 4], [2, 0, float("nan"), 1])], scale="log")
    (drawn,) = points(text)
    assert len(drawn) == 2 and drawn[0][0] < drawn[1][0] and drawn[0][1] < drawn[1][1]  # y grows downwards
    assert chart("loss", [line([1], [0])], scale="log") == chart("loss", []) == ""


def test_lines_share_their_axes():
    """The first line is drawn in the same place with a lower one beside it only where the axes hold both."""
    alone, both = line([0, 10], [5, 6]), line([0, 20], [1, 2])
    (first, second) = points(chart("x", [alone, both]))
    assert first[0][0] == second[0][0] and first[1][0] < second[1][0] and first[0][1] < second[0][1]
    held = points(chart("x", [alone], hold_x=[20], hold_y=[1]))[0]
    assert held == first


def test_a_power_law_is_straight_where_both_axes_are_logarithmic():
    x = np.array([1.0, 3.0, 30.0, 1000.0, -1.0])
    (drawn,) = points(chart("x", [line(x, np.abs(x) ** -2)], scale="log", x_scale="log"))
    assert len(drawn) == 4 and np.diff([[a, b] for a, b in drawn], axis=0)[:, 1].min() > 0
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(drawn)]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=0.02)


def test_a_matrix_is_drawn_by_sign_and_strength_and_files_need_no_page():
    matrix = squares("m", np.array([[1.0, -0.25], [0.5, 0.0]]), Key("+", "blue", "band"), Key("-", "red", "band"))
    found = re.findall(r'style="fill:(\w+)" fill-opacity="([\d.]+)"', matrix.inside)
    assert found == [("blue", "1.00"), ("red", "0.25"), ("blue", "0.50"), ("red", "0.00")]
    tree = ElementTree.fromstring(svg_file([matrix, plot("<l>", [line([1, 2], [3, 4])]), plot("none", [])]))
    texts = [text.text for text in tree.findall(".//{*}text")]
    assert {"m", "+", "-", "<l>", "a", "none", "no values"} <= set(texts)


def test_intervals_are_drawn_and_said():
    text = chart("fvd", [line([1, 2], [5, 6], low=np.array([4.0, np.nan]), high=np.array([8.0, np.nan]))])
    assert text.count('class="span"') == 1 and "(4 to 8)" in text and text.count("<circle") == 2
    y = [Axis.over([4, 8], 210, 10).at(v) for v in (4, 8)]
    assert [float(v) for v in re.findall(r'class="span"[^>]*y1="([^"]*)" y2="([^"]*)"', text)[0]] == pytest.approx(
        y, abs=0.06
    )


def test_a_long_line_is_thinned_and_keeps_its_spikes():
    y = np.ones(100_000)
    y[12_345], y[77_777] = 9.0, -9.0
    x, thinned = thin(np.arange(100_000.0), y)
    assert len(x) <= 402 and thinned.max() == 9 and thinned.min() == -9 and list(x) == sorted(x)
    assert x[0] == 0 and x[-1] == 99_999
    assert len(chart("loss", [line(np.arange(100_000), y, kind="raw")])) < 12_000


def test_stacked_shares_are_as_high_as_they_are():
    x = np.arange(1.0, 1001.0)
    text = stacked("time", x, {"a": np.full(1000, 0.25), "b": np.full(1000, 0.5)}, "rest")
    a, b, rest = points(text)
    height = Axis(0.0, 1.0, 210, 10)
    assert {y for _, y in a} == {height.at(0), height.at(0.25)} and {y for _, y in rest} == {height.at(0.75), 10.0}
    assert {y for _, y in b} == {height.at(0.25), height.at(0.75)} and len(a) <= 300
    assert stacked("time", x[:0], {"a": x[:0]}, "rest") == ""


def test_titles_and_labels_are_text():
    text = chart("<b>", [Line("<i>&", np.array([1.0]), np.array([1.0]))])
    assert "<b>" not in text.replace("<b>&lt;b&gt;</b>", "") and "&lt;i&gt;&amp;" in text and "<i>&" not in text


def test_the_average_follows_without_noise_and_without_lag():
    average = smooth([5.0 + (-1) ** i for i in range(400)], 40)
    assert average[0] == 6 and all(abs(v - 5) < (0.1 if i < 380 else 0.2) for i, v in enumerate(average) if i > 200)
    falling = 3 - 0.01 * np.arange(300)
    assert smooth(falling, 40) == pytest.approx(falling)  # to the ends, where a window has one side
    assert smooth([2.0], 40) == [2.0] and smooth([], 40) == []


def test_the_average_is_that_of_a_line_through_its_window():
    """As polynomials of degree 1 are fitted by NumPy, window by window."""
    values = np.random.default_rng(0).normal(size=60).cumsum()

    def fitted(i: int) -> float:
        half = int(max(1, min(10, 1 + i / 4)))
        x = np.arange(max(0, i - half), min(59, i + half) + 1)
        return float(np.polyval(np.polyfit(x, values[x], 1), i))

    assert smooth(values, 20) == pytest.approx([fitted(i) for i in range(60)])


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (2000, "2,000"), (120_000, "120k"), (1.5e6, "1.5M"), (0, "0"), (-3e9, "-3G")]
)
def test_ticks_are_short(value, text):
    assert short(value) == text
