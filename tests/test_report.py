"""The page of a demo, and of two: whole without network, honest about what is missing."""

import json
import re
from pathlib import Path

import pytest
import torch
from pages import Html
from safetensors.torch import save_file

from latentvid.data.video.writing import write_video
from latentvid.demo.scores import ORDER
from latentvid.report.pages import write_report
from latentvid.report.words import words

CONFIGS = {"vae_run": "statistics_samples: 8\n", "dit_run": "text_encoder: t5\n"}


def make_demo(folder: Path, strict: float = 0.5) -> Path:
    frames = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
    write_video(folder / "samples" / "00.mp4", frames, 8)
    clip = {"file": "00.mp4", "prompt": "a <b>red</b> 7 moves up", "kind": "seen", "height": 32, "width": 32}
    clip["read"] = {"digit": -1, "direction": "none", "colour": "none", "verb": "moves"}
    clip["right"] = {"digit": False, "direction": False, "colour": False, "verb": True}
    (folder / "samples" / "clips.json").write_text(json.dumps([clip]))
    for name in ("contact_sheet.png", "reconstructions.png"):
        write_video(folder / name, frames[:1], 8)
    for name, config in CONFIGS.items():
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(f"run:\n  seed: 0  # <&>\n{config}")
        rows = [
            {"step": i, "loss": 1 / i, "lr": 0.1, "tokens": 10, "tokens_per_s": 5.0, "seconds": i / 2}
            for i in range(1, 30)
        ]
        rows[3]["loss"] = None  # what the log writes for NaN
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for part in ("vae", "transformer", "text_encoder"):
        (folder / "pipeline" / part).mkdir(parents=True)
        save_file({"w": torch.zeros(300, 1000), "b": torch.zeros(20_000)}, folder / "pipeline" / part / "m.safetensors")
    scores = dict.fromkeys(ORDER, 0.96) | {"vae_psnr": 29.0, "strict": strict, "chance_both": 0.011, "seconds": 700.0}
    scores |= {"real": {"digit": 0.999}, "counts": {"seen": 280, "heldout": 140}, "settings": {"seed": 0}}
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


@pytest.fixture
def demo(tmp_path) -> Path:
    return make_demo(tmp_path / "demo")


def test_the_page_is_whole_and_needs_nothing_else(demo):
    path = write_report([demo])
    page = Html.of(path)
    assert path == demo / "report.html" and not list(demo.glob(".*"))
    assert [video["src"].split(",")[0] for video in page.all("video")] == ["data:video/mp4;base64"]
    assert {"loop", "muted", "autoplay"} <= set(page.all("video")[0]) and page.all("video")[0]["width"] == "128"
    assert len(page.all("img")) == 2 and len(page.all("details")) == 2
    assert "a <b>red</b> 7 moves up" in page.text and "seed: 0  # <&>" in page.text  # shown, not obeyed
    assert "no digit" in page.text and "12 min" in page.text and "280 clips of seen pairs" in page.text
    assert page.row("text encoder") == ["0.32 M"] and page.text.count("Loss of training") == 2
    assert "Autoencoder (vae_run)" in page.text and "Demo: demo" in page.text


def test_scores_are_coloured_by_what_is_usual(demo):
    text = write_report([demo]).read_text(encoding="utf-8")
    level = dict(re.findall(r'<tr><th>([^<]+)<span.*?<b class="(\w*)">', text))
    found = [level[words(name)] for name in ("vae_psnr", "digit", "strict", "heldout_both", "shuffled_both")]
    assert found == ["poor", "good", "poor", "good", ""]
    assert set(level) == set(map(words, ORDER))
    assert "chance 0.011" in text and "0.999" in text


def test_what_a_demo_lacks_is_said(tmp_path):
    (tmp_path / "vae_run").mkdir()
    page = Html.of(write_report([tmp_path]))
    assert page.notes() >= 7 and not page.all("svg") and not page.all("video")
    for name in ("scores.json", "clips.json", "vae_run is missing", "contact_sheet.png", "dit_run is missing"):
        assert name in page.text


def test_a_missing_clip_leaves_its_prompt(demo):
    (demo / "samples" / "00.mp4").unlink()
    page = Html.of(write_report([demo]))
    assert "00.mp4 is missing" in page.text and "7 moves up" in page.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"digit": 0.9', "scores.json: is damaged"),
        ('{"digit": "x", "strict": 0.5}', "scores.json: digit: input should be a valid number"),
        ("[1]", "scores.json: its content: input should be a valid dictionary"),
    ],
)
def test_a_damaged_file_is_said_and_the_rest_shown(content, said, demo):
    (demo / "scores.json").write_text(content)
    page = Html.of(write_report([demo]))
    assert said in page.text and "7 moves up" in page.text and "Generated clips" in page.text


def test_two_demos_side_by_side(demo, tmp_path):
    other = make_demo(tmp_path / "other", strict=0.9)
    (other / "extra_run").mkdir()
    (other / "extra_run" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    path = write_report([demo, other], tmp_path / "both.html")
    page = Html.of(path)
    assert path == tmp_path / "both.html"
    assert "demo against other" in page.text and len(page.all("video")) == 2 and len(page.all("img")) == 4
    assert page.row("strict")[2:] == ["+0.400", "apart: other is better"]
    assert "0.442 to 0.558, 280 clips" in page.row("strict")[0]  # Wilson's interval of 140 of 280
    assert page.row("digit")[2:] == ["0.000", "overlap"] and page.row("PSNR of the autoencoder")[3] == "not known"
    assert "demo has no extra_run" in page.text and page.text.count("by tokens") == 2  # of vae_run and dit_run
