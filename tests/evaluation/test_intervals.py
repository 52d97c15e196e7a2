"""Intervals of scores: their parts against slow references, files as units, coverage and width by simulation."""

import math
from statistics import fmean, stdev

import pytest
import torch
from scipy.stats import t as student

from latentvid.evaluation.intervals import Spread, by_file, halvings, of_score, spread
from latentvid.evaluation.mean_score import MeanScore
from latentvid.evaluation.sets.scores import FrechetScore, InceptionScore, KernelScore
from latentvid.evaluation.summary import summarise_one

FID, KID, IS = FrechetScore("fid", "x"), KernelScore("kid", "x"), InceptionScore("is", "x")
MEAN = MeanScore(name="m", extractor="x", compares="none", better="higher")


def clips(count: int, width: int, rows: int = 1, shift: float = 0.0) -> list[torch.Tensor]:
    scale = torch.arange(1, width + 1) ** -0.5
    return [torch.randn(rows, width) * scale + shift for _ in range(count)]


@pytest.mark.parametrize("score", [FID, KID])
@pytest.mark.parametrize(("width", "rows"), [(40, 1), (4, 2)])
def test_derivatives_are_those_of_the_score_in_the_counts(score, width, rows):
    a, b = clips(12, width, rows), clips(9, width, rows, shift=0.3)
    counts = [torch.ones(1, len(x)).double() for x in (a, b)]
    step = 1e-5
    for side, found in enumerate(score.derivatives(a, b)):
        for k in (0, 3):
            more, less = ([x.clone() for x in counts] for _ in range(2))
            more[side][0, k] += step
            less[side][0, k] -= step
            up, down = (float(score.of_resamples(a, x[0], b, x[1])) for x in (more, less))
            assert float(found[k]) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-8)


def test_derivatives_of_scores_without_real_clips():
    logits = clips(9, 5, rows=2)
    counts, step = torch.ones(1, 9).double(), 1e-5
    ahead = counts.clone()
    ahead[0, 2] += step
    (found,) = IS.derivatives(logits)
    rise = (float(IS.of_resamples(logits, ahead)) - float(IS.of_resamples(logits, counts))) / step
    assert float(found[2]) == pytest.approx(rise, rel=1e-3)
    (found,) = MEAN.derivatives(logits)
    assert float(found[2]) == pytest.approx((MEAN.of_clip(logits[2]) - MEAN(logits)) / 9)


@pytest.mark.parametrize("score", [FID, KID])
@pytest.mark.parametrize("width", [40, 4])
def test_halves_are_scores_of_the_files_in_them(score, width):
    a, b = clips(11, width), clips(14, width, shift=0.3)
    first, real_first = halvings(11, 3, "clips"), halvings(14, 3, "real")
    assert first.sum(1).tolist() == [5] * 3
    for r, (one, other) in enumerate(score.of_halves(a, first, b, real_first).tolist()):
        for found, inside in ((one, True), (other, False)):
            x = [clip for clip, here in zip(a, first[r], strict=True) if bool(here) is inside]
            y = [clip for clip, here in zip(b, real_first[r], strict=True) if bool(here) is inside]
            assert found == pytest.approx(score(x, y), rel=1e-9, abs=1e-12)


def test_the_interval_of_a_mean_is_students_over_files():
    rows = [torch.randn(3, 1) for _ in range(30)]
    means = [float(clip.mean()) for clip in rows]
    result = summarise_one(MEAN, rows, None)
    half = student.ppf(0.975, 29) * stdev(means) / math.sqrt(30)
    assert result.value == pytest.approx(fmean(means), abs=1e-6)
    assert (result.low, result.high) == pytest.approx((result.value - half, result.value + half), rel=1e-6)
    files = [file for file in range(30) for _ in range(4)]
    again = summarise_one(MEAN, [rows[file] for file in files], None, files=files)
    assert (again.low, again.high) == pytest.approx((result.low, result.high))  # four times the same says no more
    naive = summarise_one(MEAN, [rows[file] for file in files], None)
    assert naive.high - naive.low == pytest.approx((result.high - result.low) / 2, rel=0.1)
    assert summarise_one(MEAN, rows, None, 0).low is None
    assert summarise_one(MEAN, rows, None, files=[0] * 30).low is None  # one file has no spread


def test_the_parts_of_the_variance():
    linear = torch.tensor([1.0, -1.0, 3.0, -3.0]).double()
    found = spread([linear])
    assert (found.jackknife, found.quadratic) == (pytest.approx(4 / 3 * 20), 0)
    assert found.freedom == pytest.approx(3) and found.variance == found.jackknife
    halves = torch.tensor([[1.0, 3.0], [2.0, 0.0], [5.0, 1.0]]).double()
    assert spread([linear, linear], halves).quadratic == pytest.approx(4 / 4)  # of 4, 2 and 6
    assert spread([linear, linear], halves).freedom == pytest.approx(6)
    assert Spread(2.0, 1.0, 9).variance == Spread(1.0, 1.0, 9).variance == 1
    assert Spread(4.0, 1.0, 9).variance == 3  # 2 of it linear
    half = student.ppf(0.975, 9) * 3**0.5
    assert Spread(4.0, 1.0, 9).interval(10) == pytest.approx((10 - half, 10 + half))
    assert Spread(4.0, 1.0, 9).interval(0.5, least=0)[0] == 0
    assert by_file(torch.arange(4.0), [1, 0, 1, 0]).tolist() == [4, 2]
    with pytest.raises(ValueError, match="one file has no spread"):
        spread([linear, linear[:1]])


T = 1.959964  # of no end of degrees of freedom


def test_the_ends_of_an_unbiased_distance_are_where_their_own_spread_reaches_the_value():
    found = Spread(6.0, 1.0, 1e9)  # 4 of it linear
    for value in (2.0, 5.0, 40.0):
        low, high = found.interval(value, alike=0)
        assert 0 < low < value < high
        steep = (4 + 2 * 0.3) / (value + 2)  # drawn to 0.3 as by two deviations of the quadratic part
        assert value - low == pytest.approx(T * math.sqrt(1 + steep * low), rel=1e-4)
        steep = (4 + 6 * 0.3 * value**2 / (value**2 + 1)) / (value + 6)
        assert high - value == pytest.approx(T * math.sqrt(1 + steep * high), rel=1e-4)
    assert found.interval(1.9, alike=0)[0] == pytest.approx(1.9 - T, rel=1e-4)  # alike: the quadratic part alone
    assert found.interval(-1.0, alike=0)[0] == pytest.approx(-1 - T, rel=1e-4)
    assert found.interval(7.0, alike=2)[0] == pytest.approx(found.interval(5.0, alike=0)[0] + 2)


def test_the_spread_of_a_biased_distance_grows_from_its_bias_on():
    found = Spread(6.0, 1.0, 1e9, halves=13.0)  # of 10: a bias of 3, and 7 above it
    low, high = found.interval(10.0, least=0, alike="bias")
    assert 10 - low == pytest.approx(T * math.sqrt(5 + 0.75 * 4 / 7 * (low - 10)), rel=1e-4)
    reach = (high - 10) / 1.1
    assert reach == pytest.approx(T * math.sqrt(5 + 0.1 * 4 / 5**0.5 * reach), rel=1e-4)
    assert Spread(2.0, 1.0, 1e9, halves=13.0).interval(10.0, alike="bias")[0] == pytest.approx(10 - T, rel=1e-4)
    assert Spread(0.0, 0.0, 9, halves=10.0).interval(10.0, alike="bias") == (10, 10)


def test_sets_of_few_files_have_no_interval():
    a, b = clips(12, 4), clips(12, 4)
    for files, there in (([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], False), ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], True)):
        result = summarise_one(FID, a, b, 20, files=files)
        assert (result.low is not None) == there
    first, again = (of_score(FID, a, range(12), b, range(12), 20) for _ in range(2))
    assert first == again  # keyed draws: the same always


@pytest.mark.parametrize(("score", "shift"), [(FID, 0.0), (FID, 0.6), (KID, 0.6)])
def test_intervals_cover_what_other_samples_give_and_are_no_wider_than_need_be(score, shift):
    """A small part of what `benchmarks/intervals.py` measures."""
    results = [summarise_one(score, clips(24, 30), clips(24, 30, shift=shift), 30) for _ in range(40)]
    values = [result.value for result in results]
    expected, ideal = fmean(values), 2 * 1.96 * stdev(values)
    covered = sum(result.low <= expected <= result.high for result in results)
    assert covered >= 33
    assert 0.75 < fmean(result.high - result.low for result in results) / ideal < 1.5
