"""Digits drawn in other ways: their clips, the pictures that show a look, and what reads them."""

import json

import numpy as np
import pytest
import torch

from latentvid.data.manifest.manifest import read_manifest
from latentvid.data.video.reading import read_frames
from latentvid.demo import looks
from latentvid.demo.digits import Label, glyphs, read_caption, render
from latentvid.errors import UserError


def test_each_look_changes_every_digit_and_plain_none():
    images, _ = glyphs(False)
    drawn = {name: looks.in_look(images, name) for name in looks.LOOKS}
    assert torch.equal(drawn["plain"], images)
    for name, each in drawn.items():
        assert each.shape == images.shape and float(each.min()) >= 0 and float(each.max()) <= 1
        assert torch.equal(looks.in_look(images[3], name), each[3])
        if name != "plain":
            assert float((each - images).abs().flatten(1).amax(dim=1).min()) > 0.2
    with pytest.raises(UserError, match="look 'dotted': choose among plain, striped"):
        looks.in_look(images, "dotted")


def test_clips_have_their_captions_and_a_picture_of_another_digit(tmp_path):
    for name in ("a", "b"):
        looks.write_looks(tmp_path / name, ["half", "thick"], clips=4, seed=3)
    looks.write_looks(tmp_path / "c", ["half", "thick"], clips=4, seed=4)
    manifest = read_manifest(tmp_path / "a/train.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a/train.jsonl").read_text().splitlines()]
    assert len(manifest.samples) == 4 and [row["look"] for row in rows] == ["half", "thick"] * 2
    looks.write_looks(tmp_path / "d", ["plain", "half", "thick"], clips=9, seed=3)
    told = [json.loads(line) for line in (tmp_path / "d/train.jsonl").read_text().splitlines()]
    assert len({(row["look"], row["height"], row["width"]) for row in told}) == 9  # each in every size
    for row in rows:
        assert read_caption(row["caption"]).verb in ("moves", "bounces")
        assert read_frames(tmp_path / "a" / row["style"], 0, 1, threads=0).shape == (1, 24, 24, 3)
        clip = read_frames(tmp_path / "a" / row["path"], 0, 17, threads=0)
        assert clip.shape == (17, row["height"], row["width"], 3) and int(clip.max()) > 150
    same = [(tmp_path / name / rows[0]["path"]).read_bytes() for name in "abc"]
    assert same[0] == same[1] != same[2]


def test_a_picture_shows_the_look_on_another_digit():
    shown = looks.picture("columns", np.random.default_rng(0), other_than=3, heldout=True)
    again = looks.picture("columns", np.random.default_rng(0), other_than=3, heldout=True)
    plain = looks.picture("plain", np.random.default_rng(0), other_than=3, heldout=True)
    assert torch.equal(shown, again) and shown.dtype == torch.uint8 and not torch.equal(shown, plain)


def test_the_score_counts_look_digit_and_direction():
    class Reads:
        """As a judge of looks that is always right of plain clips of a 3 that moves left."""

        def __call__(self, clip):
            from latentvid.demo.judge import Verdict

            return Verdict(13, (13,) * len(clip), "left", "red", False, torch.zeros(len(clip), 2), torch.ones(60))

    label = Label(3, "red", "moves", "left")
    clips = [render(label, 9, (24, 24), np.random.default_rng(0), heldout=True)] * 4
    labels = [label, Label(4, "red", "moves", "left"), Label(3, "red", "moves", "up"), label]
    found = looks.score(clips, labels, ["striped", "striped", "striped", "half"], Reads())
    assert found == {
        "look": 0.75,
        "digit": 0.75,
        "look and digit": 0.5,
        "direction": 0.75,
        "both": 0.5,
        "all": 0.25,
    }
