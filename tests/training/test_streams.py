"""Shares of tokens of sources and kinds, through the plan that is made of them."""

from collections import Counter

import numpy as np
import pytest
from safetensors.torch import load_file

from latentvid.data.plan.plan import Plan
from latentvid.data.plan.streams import make_streams
from latentvid.errors import UserError
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

SOURCE = np.array([0] * 30 + [1] * 60 + [2] * 10)
NAMES = ("a", "b", "c")
IMAGE = np.arange(100) % 3 == 0
IMAGE[90:] = False  # the last source has clips only


def shares(weights, image_share, steps=200) -> tuple[list[float], float]:
    """(share of each source, of images) of the tokens drawn."""
    tokens = np.where(IMAGE, 5, 20)
    plan = Plan(tokens, budget=100, packs=2, seed=0, streams=make_streams(NAMES, SOURCE, IMAGE, weights, image_share))
    by_source, by_kind = Counter(), Counter()
    for _ in range(steps):
        for _, index in (draw for pack in plan.next().packs for draw in pack):
            by_source[int(SOURCE[index])] += int(tokens[index])
            by_kind[bool(IMAGE[index])] += int(tokens[index])
    total = sum(by_source.values())
    return [by_source[n] / total for n in range(3)], by_kind[True] / total


def test_nothing_asked_draws_every_sample_once_an_epoch():
    assert make_streams(NAMES, SOURCE, IMAGE, (), None) is None


def test_sources_share_the_tokens_by_their_weights():
    found, _ = shares((1, 1, 2), None)
    assert found == pytest.approx([0.25, 0.25, 0.5], abs=0.01)


def test_images_have_their_share_and_sources_share_each_kind():
    found, images = shares((1, 1, 2), 0.4)
    assert images == pytest.approx(0.4, abs=0.01)
    assert found == pytest.approx([0.2 + 0.15, 0.2 + 0.15, 0.3], abs=0.01)  # images of two sources, clips of three
    assert shares((), 0.9)[1] == pytest.approx(0.9, abs=0.01)
    assert shares((), 0.0)[1] == 0 and shares((), 1.0)[1] == 1


def test_what_cannot_be_shared_is_said():
    with pytest.raises(UserError, match=r"data\.weights has 2 values for 3 sources \(a, b, c\)"):
        make_streams(NAMES, SOURCE, IMAGE, (1, 2), None)
    with pytest.raises(UserError, match=r"image_share is 0\.3, but no image"):
        make_streams(NAMES, SOURCE, np.zeros(100, dtype=bool), (), 0.3)
    with pytest.raises(UserError, match=r"image_share is 0\.3, but no clip"):
        make_streams(NAMES, SOURCE, np.ones(100, dtype=bool), (), 0.3)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_weight_is_its_sources_wherever_an_empty_one_stands(empty):
    """An empty source shifts no weight to another: it is named, in any order."""
    weights = (5.0, 6.0, 7.0)
    there = np.not_equal(SOURCE, empty)
    with pytest.raises(UserError, match=rf"data\.weights gives {5 + empty} to {NAMES[empty]}, of which no sample"):
        make_streams(NAMES, SOURCE[there], IMAGE[there], weights, None)
    with pytest.raises(UserError, match="has 2 values for 3 sources"):
        make_streams(NAMES, SOURCE[there], IMAGE[there], weights[:2], None)
    assert make_streams(NAMES, SOURCE[there], IMAGE[there], (), None) is None


def test_streams_carry_the_names_of_their_sources():
    mixed = make_streams(NAMES, SOURCE, IMAGE, (1, 1, 2), 0.4)
    assert [stream.name for stream in mixed] == ["a (images)", "b (images)", "a (clips)", "b (clips)", "c (clips)"]
    with pytest.raises(UserError, match="gives 2 to c, of which no sample is left"):
        make_streams(NAMES, SOURCE, IMAGE, (1, 1, 2), 1.0)  # it has clips only


def test_a_mix_of_caches_trains_and_goes_on_where_it_was(dit_config, tiny_latents, tmp_path):
    mix = (f"data.latents=[{tiny_latents}, {tiny_latents}]", "data.weights=[3, 1]", "data.image_share=0.2")
    options = (*mix, "log.draws=true", "checkpoint.every=2", "optim.schedule=constant")
    for run, steps in (("whole", 5), ("parts", 2), ("parts", 5)):
        train(dit_config(tmp_path / run, *options, f"train.steps={steps}"), DitTask)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert (whole / "draws.jsonl").read_text() == (parts / "draws.jsonl").read_text()
    assert [r["loss"] for r in read_metrics(whole)] == [r["loss"] for r in read_metrics(parts)]
    files = [run / "checkpoints/step-00000005/model.safetensors" for run in (whole, parts)]
    a, b = map(load_file, files)
    assert all((a[k] == b[k]).all() for k in a)
    with pytest.raises(UserError, match=r"data\.weights was \[3\.0, 1\.0\], is \[1\.0, 1\.0\]"):
        train(dit_config(parts, *options, "data.weights=[1, 1]"), DitTask)
