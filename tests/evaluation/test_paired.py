"""Two models compared by prompt and seed: pairs, tests, effect sizes, and the command's and the page's words."""

import json
from pathlib import Path

import pytest
import torch
from scipy import stats

from latentvid.errors import UserError
from latentvid.evaluation.clip_folder import Item
from latentvid.evaluation.footage import Excerpt
from latentvid.evaluation.mean_score import MeanScore
from latentvid.evaluation.paired import cohens_dz, compare_one, match, seeds_of, swapped
from latentvid.evaluation.sets.scores import FrechetScore, InceptionScore

FID = FrechetScore("fid", "x")
MEAN = MeanScore(name="m", extractor="x", compares="none", better="lower")


def item(name: str, caption: str | None = None, start: int = 0) -> Item:
    return Item(name, Excerpt(Path(name), start, 4, 8, 8, 8.0), caption)


def test_pairs_are_of_one_prompt_and_seed_whatever_their_names():
    first = [item("a.mp4", "x"), item("b.mp4", "x"), item("c.mp4", "y")]
    second = [item("1.mp4", "y"), item("2.mp4", "x"), item("3.mp4", "z")]
    seeds = {"a.mp4": 1, "b.mp4": 2, "c.mp4": 1}, {"1.mp4": 1, "2.mp4": 2, "3.mp4": 1}
    assert match(first, second, seeds) == [(1, 1, "x"), (2, 0, "y")]
    with pytest.raises(UserError, match="no clip of one set has a partner in the other, such as a.mp4 and 1.mp4"):
        match(first, second)
    assert match(first, [item("a.gif", "x"), item("c.gif")]) == [(0, 0, "x"), (2, 1, "y")]
    with pytest.raises(UserError, match="'x' in one set and 'q' in the other"):
        match(first, [item("b.mp4", "q")])


def test_seeds_are_those_of_the_samplers_index(tmp_path):
    assert seeds_of(tmp_path) == {}
    rows = [{"file": "a.mp4", "prompt": "x", "seed": 3}, {"file": "b.mp4", "prompt": "x"}]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert seeds_of(tmp_path) == {"a.mp4": 3}


def test_the_test_of_swaps_is_scipys_and_the_effect_is_cohens():
    few, many = torch.randn(9).double() + 0.5, torch.randn(40).double() + 0.3
    for sums, close in ((few, 1e-9), (many, 0.02)):
        reference = stats.permutation_test((sums.numpy(),), lambda x, axis: x.sum(axis), permutation_type="samples",
                                           vectorized=True, n_resamples=10_000 if len(sums) > 13 else 2**9)  # fmt: skip
        assert swapped(sums) == pytest.approx(reference.pvalue, abs=close)
    assert swapped(torch.zeros(5).double()) == 1
    assert cohens_dz(many) == pytest.approx(float(many.mean() / many.std()))
    assert cohens_dz(torch.ones(3)) is None and cohens_dz(torch.ones(1)) is None


def test_differences_of_single_clips_are_of_pairs_and_prompts():
    prompts = [10 * torch.randn(1, 1).double() for _ in range(30)]
    rows = [x + 0.1 * torch.randn(1, 1) - 0.1 for x in prompts]
    others = [x + 0.1 * torch.randn(1, 1) for x in prompts]
    found = compare_one(MEAN, rows, others, range(30))
    each = torch.cat(rows).flatten() - torch.cat(others).flatten()
    reference = stats.ttest_1samp(each.numpy(), 0)
    interval = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6)
    assert found.difference == pytest.approx(found.value - found.other) and found.p < 0.05
    assert found.wins == pytest.approx(float((each < 0).double().mean())) and found.wins > 0.5  # lower is better
    twice = compare_one(MEAN, rows * 2, others * 2, [*range(30)] * 2)  # two seeds that say the same
    assert (twice.low, twice.high, twice.p) == pytest.approx((found.low, found.high, found.p))
    assert (twice.pairs, twice.units) == (60, 30)
    one = compare_one(MEAN, rows[:2], others[:2], [0, 0])
    assert one.low is None and one.p is None and one.wins is not None


def test_a_difference_of_distances_is_sharper_than_the_two_distances():
    scale = torch.arange(1, 7) ** -0.5
    real = [torch.randn(1, 6) * scale for _ in range(60)]
    base = [torch.randn(1, 6) * scale for _ in range(60)]
    rows, others = ([x + 0.05 * torch.randn(1, 6) + shift for x in base] for shift in (0.5, 0.8))
    found = compare_one(FID, rows, others, range(60), real, None, 40)
    assert found.difference == pytest.approx(FID(rows, real) - FID(others, real))
    assert found.low < found.difference < found.high < 0 and found.p < 0.001
    assert found.effect is None and found.relative == pytest.approx(found.difference / found.other)
    again = compare_one(FID, others, rows, range(60), real, None, 40)
    assert (again.low, again.high, again.p) == pytest.approx((-found.high, -found.low, found.p))
    same = compare_one(FID, rows, [x + 0.01 * torch.randn(1, 6) for x in rows], range(60), real, None, 40)
    assert same.low < 0 < same.high and same.p > 0.05
    assert compare_one(FID, rows[:3], others[:3], range(3), real[:9], None, 40).low is None
    logits = compare_one(InceptionScore("is", "x"), rows, others, range(60), None, None, 40)
    assert logits.low < logits.difference < logits.high
