"""A subject for the demo's model: a drawn glyph, its clips and captions, and a judge that tells it from digits."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latentvid import commands
from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.data.manifest.manifest import read_manifest
from latentvid.data.video.reading import read_frames
from latentvid.demo import glyph, judge
from latentvid.demo.digits import SIZES, WORDS, Label, prompts, read_caption
from latentvid.errors import UserError


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    root = tmp_path_factory.mktemp("glyph")
    glyph.write_subject(root, "zorp", clips=5, seed=3)
    return root


def test_clips_show_one_motion_each_and_prompts_others(subject):
    manifest = read_manifest(subject / "train.jsonl", extra=("verb", "direction"))
    shown = set(zip(manifest.extra["verb"][:5], manifest.extra["direction"][:5], strict=True))
    assert len(manifest.samples) == 5 + 5 * 9 and len(shown) == 5
    for i, sample in enumerate(manifest.samples):
        clip = i if i < 5 else (i - 5) // 9
        assert (sample.frames, sample.height, sample.width) == (17 if i < 5 else 1, *SIZES[clip % 3])
        captions = manifest.samples.captions(i)
        assert len(captions) > 1 and all("zorp" in caption.split() or "zorp," in caption for caption in captions)
    asked = [each for each, _ in glyph.prompts(66, "zorp", clips=5, seed=3)]
    assert {(each.verb, each.direction) for each in asked} == {
        motion for motion in glyph.split_motions(5, 3)[1] if motion not in shown
    }
    assert len({each.colour for each in asked}) == 7 and len(glyph.split_motions(5, 3)[1]) == 11


def test_its_prompts_are_those_of_digits_with_another_word(subject):
    for shown, text in glyph.prompts(20, "zorp", clips=5, seed=3):
        assert read_caption(text.replace("zorp", "7")) == Label(7, *shown)
    rows = [json.loads(line) for line in (subject / "train.jsonl").read_text().splitlines()]
    lines = (subject / "class.txt").read_text().splitlines()
    assert [text for _, text in prompts(300, heldout=False, seed=3)] == lines[::2] and len(lines) == 600
    for i, line in enumerate(lines[1::2]):  # the subject's own, with a digit in the word's place
        label = read_caption(line)
        assert label.digit == i // 5 % 10
        names = (str(label.digit), WORDS[label.digit])
        assert line in [text.replace("zorp", name) for text in rows[i % 5]["caption"] for name in names]


def test_stills_are_frames_of_the_clips_and_say_nothing_of_motion(subject):
    rows = [json.loads(line) for line in (subject / "train.jsonl").read_text().splitlines()]
    clip = read_frames(subject / rows[1]["path"], 0, 17, threads=0)
    still = rows[5 + 9 + 3]
    assert still["path"] == "stills/00001_06.png" and still["frames"] == 1
    pixels = read_frames(subject / still["path"], 0, 1, threads=0)
    assert float((pixels[0].float() - clip[6].float()).abs().mean()) < 8  # but for what the clip's encoding loses
    for text in still["caption"]:
        assert read_caption(text.replace("zorp", "7")) == Label(7, rows[1]["colour"])


def test_the_same_seed_draws_the_same_and_another_another(subject, tmp_path):
    glyph.write_subject(tmp_path / "same", "zorp", clips=5, seed=3)
    glyph.write_subject(tmp_path / "other", "zorp", clips=5, seed=4)
    clips = [(root / "clips/00000.mp4").read_bytes() for root in (subject, tmp_path / "same", tmp_path / "other")]
    assert clips[0] == clips[1] != clips[2]
    ink = glyph.draw(np.random.default_rng(0))
    assert ink.shape == (16, 16) and float(ink.min()) == 0 and float(ink.max()) == 1 and float(ink[9, 7]) < 0.2


def test_words_of_digits_are_refused(tmp_path):
    for word in ("seven", "red", "two words", "digit", "7"):
        with pytest.raises(UserError, match="give one word of letters that captions of digits have not"):
            glyph.write_subject(tmp_path, word, clips=1, seed=0)


def test_a_judge_of_eleven_classes_is_loaded_and_scores_the_glyph(tmp_path):
    """A few steps are enough to load it; what it learns is measured in benchmarks/dreambooth.py."""
    drawn = glyph.drawings(20, seed=1), glyph.drawings(5, seed=2)
    judge.train(tmp_path / "judge.safetensors", steps=2, batch=8, more=drawn)
    known = judge.Judge.load(tmp_path / "judge.safetensors")
    assert known.net.head.out_features == 11
    shown = glyph.Shown("red", "moves", "up")
    clip = glyph.render(shown, (24, 32), np.random.default_rng(0))
    with torch.no_grad():
        known.net.head.bias[glyph.CLASS] = 1e4
    assert glyph.score([clip], [shown], known) == {"glyph": 1, "direction": 1, "both": 1, "colour": 1}
    with torch.no_grad():
        known.net.head.bias[3] = 1e5
    assert glyph.score([clip], [shown._replace(colour="blue")], known) == {
        "glyph": 0, "direction": 1, "both": 0, "colour": 0
    }  # fmt: skip


def test_the_recipe_of_the_demo_is_one():
    config = load_config(DitConfig, Path(__file__).parents[2] / "configs/dit/demo_dreambooth.yaml")
    assert config.prior.wanted and config.prior.share == 0.6 and config.init == "runs/demo/pipeline"


def test_the_program_writes_what_the_recipe_reads(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["glyph", str(tmp_path), "--clips", "2", "--word", "blick"])
    commands.glyph()
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 20 and (tmp_path / "class.txt").is_file()
