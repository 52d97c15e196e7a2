"""benchmarks/mixed_shapes.py: all its ways train the same network on whole samples."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
GRIDS = [(1, 2, 3), (1, 8, 8), (2, 6, 6), (3, 4, 5)]


@pytest.fixture
def mixed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import mixed_shapes

    monkeypatch.setitem(mixed_shapes.BACKENDS, "masked", None)  # gone after the test
    return mixed_shapes


def test_a_padded_batch_has_the_losses_and_gradients_of_a_pack(mixed):
    trainer, found = mixed.Trainer(width=64, depth=2, heads=2, bf16=False), []
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for padded_to, tokens in ((None, 202), (0, 4 * 72), (80, 4 * 80)):
        batch = mixed.Batch.of(GRIDS, padded_to)
        assert batch.layout.tokens == tokens and batch.true.tokens == 202
        losses = trainer.losses(batch)
        trainer.model.zero_grad()
        losses.sum().backward()
        found.append([losses.detach(), *(p.grad.clone() for p in trainer.model.parameters())])
    for packed, *others in zip(*found, strict=True):
        for padded in others:
            torch.testing.assert_close(padded, packed, rtol=1e-4, atol=1e-5 * packed.abs().max().item() + 1e-7)


def test_every_way_takes_whole_samples_within_the_budget(mixed):
    data, budget = mixed.draw(600, seed=0), 4224
    for way, grids in ((mixed.padding, data.own), (mixed.padding_sorted, data.own), (mixed.buckets, data.cropped)):
        batches = list(way(data, budget))
        assert Counter(grid for batch in batches for grid in batch) == Counter(grids)  # an epoch, none lost
        assert all(len(batch) * max(np.prod(batch, axis=1)) <= budget for batch in batches)
    assert all(len(set(batch)) == 1 for batch in mixed.buckets(data, budget))
    for step in islice(mixed.packing(data, budget, ranks=2, width=384), 20):
        assert len(step) == 2
        assert all(set(pack) <= set(data.own) and sum(np.prod(pack, axis=1)) <= budget for pack in step)
    assert sorted(mixed.spread(range(100), 4, float)) == [12, 37, 62, 87]


def test_a_step_lasts_as_long_as_its_slowest_rank(mixed):
    rows = {"useful": [10] * 4, "seconds": [1.0, 3.0, 2.0, 2.0]}
    assert mixed.on_ranks("packing", rows, ranks=2) == pytest.approx(40 / (3 + 2) / 2)
    assert mixed.on_ranks("buckets", {"useful": [10] * 3, "seconds": [2.0] * 3}, ranks=8) == pytest.approx(5)
