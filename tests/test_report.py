"""The report page: whole without network, honest about what is missing, and charts that hold their data."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentvid.charts import Axis, line_chart, smooth
from latentvid.data.writing import write_video
from latentvid.errors import UserError
from latentvid.evaluation.scores import ORDER
from latentvid.report import main, training_table, write_report

VOID = {"meta", "img", "line", "polyline"}


class Page(HTMLParser):
    """Fails on tags that do not match; collects elements, sources and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture
def run_folder(tmp_path) -> Path:
    frames = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
    write_video(tmp_path / "samples" / "00.mp4", frames, 8)
    clip = {"file": "00.mp4", "prompt": "a <b>red</b> 7 moves up", "kind": "seen", "height": 32, "width": 32}
    clip["read"] = {"digit": -1, "direction": "none", "colour": "none", "verb": "moves"}
    clip["right"] = {"digit": False, "direction": False, "colour": False, "verb": True}
    (tmp_path / "samples" / "clips.json").write_text(json.dumps([clip]))
    for name in ("contact_sheet.png", "reconstructions.png"):
        write_video(tmp_path / name, frames[:1], 8)
    for name in ("vae_run", "dit_run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("run:\n  seed: 0  # <&>\n")
        rows = [
            {"step": i, "loss": 1 / i, "mse": 2 / i, "tokens": 10, "tokens_per_s": 5.0, "seconds": i / 2}
            for i in range(1, 30)
        ]
        rows[3]["loss"] = None  # what the log writes for NaN
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for part in ("vae", "transformer", "text_encoder"):
        (tmp_path / "pipeline" / part).mkdir(parents=True)
        save_file(
            {"w": torch.zeros(300, 1000), "b": torch.zeros(20_000)}, tmp_path / "pipeline" / part / "m.safetensors"
        )
    scores = dict.fromkeys(ORDER, 0.96) | {"vae_psnr": 31.0, "strict": 0.5, "chance_both": 0.011, "seconds": 700.0}
    scores |= {"real": {"digit": 0.999}, "counts": {"seen": 280, "heldout": 140}, "settings": {"seed": 0}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    return tmp_path


def test_the_page_is_whole_and_needs_nothing_else(run_folder):
    path = write_report(run_folder)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == run_folder / "report.html" and not list(run_folder.glob(".*"))
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)|url\(|@import|<script|<link", text)
    assert [video["src"].split(",")[0] for video in page.all("video")] == ["data:video/mp4;base64"]
    assert {"loop", "muted", "autoplay"} <= set(page.all("video")[0]) and page.all("video")[0]["width"] == "128"
    assert len(page.all("img")) == 2 and len(page.all("svg")) == 4 and len(page.all("details")) == 2
    assert "a <b>red</b> 7 moves up" in page.text and "seed: 0  # <&>" in page.text  # shown, not obeyed
    assert "no digit" in page.text and "note" not in [attrs.get("class") for _, attrs in page.found]
    assert "11 min 40 s" in page.text and "280 clips of seen pairs" in page.text


def test_scores_are_coloured_by_their_thresholds(run_folder):
    text = write_report(run_folder).read_text(encoding="utf-8")
    level = dict(re.findall(r'<tr><th>(\w+)<.*?<b class="(\w*)">', text))
    assert [level[name] for name in ("vae_psnr", "digit", "strict", "heldout_both", "verb")] == [
        "fair", "fair", "poor", "good", ""]  # fmt: skip
    assert set(level) == set(ORDER)
    assert "chance 0.011" in text and "0.999" in text


def test_what_is_missing_is_said(tmp_path):
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    notes = sum(attrs.get("class") == "note" for _, attrs in page.found)
    assert notes >= 7 and not page.all("svg") and not page.all("video")
    for name in ("scores.json", "clips.json", "vae_run/metrics.jsonl", "contact_sheet.png", "dit_run/config.yaml"):
        assert name in page.text


def test_a_missing_clip_leaves_its_prompt(run_folder):
    (run_folder / "samples" / "00.mp4").unlink()
    page = Page(write_report(run_folder).read_text(encoding="utf-8"))
    assert "00.mp4 is missing" in page.text and "7 moves up" in page.text


def test_bad_folders_and_damaged_files_are_refused(run_folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no folder.*make demo"):
        write_report(tmp_path / "none")
    (run_folder / "scores.json").write_text('{"digit": 0.9')
    monkeypatch.setattr(sys, "argv", ["report", str(run_folder)])
    with pytest.raises(UserError, match="scores.json is damaged.*latentvid.evaluation.demo"):
        main()


def test_the_training_table_counts(run_folder):
    again = [{"step": 5, "loss": 0.25, "tokens": 4, "seconds": s} for s in (10.0, 20.0, 5.0, 7.0)]  # stopped at 20 s
    text = training_table(run_folder, {"vae_run": again, "dit_run": []})
    assert text.count("0.32 M") == 3 and "27 s" in text and "0.2500" in text


@pytest.mark.parametrize(
    ("values", "log"),
    [([0.5, 0.3], True), ([0.301, 0.302], True), ([1e-9, 1e9], True), ([7.0], True), ([0.0], False), ([1e6], False)],
)
def test_axes_hold_their_values_and_a_few_ticks(values, log):
    axis = Axis.over(values, 100, 20, log=log, zero=not log)
    assert all(20 <= axis.at(value) <= 100 for value in values)
    ticks = axis.ticks()
    assert len(ticks) >= 2 and all(19.99 <= axis.at(tick) <= 100.01 for tick in ticks)
    assert len(ticks) <= 20


def test_a_chart_leaves_out_what_it_cannot_draw():
    text = line_chart("loss", [(1, 2.0), (2, 0.0), (3, float("nan")), (4, 1.0)], log_y=True)
    lines = re.findall(r'<polyline class="(\w+)" points="([^"]*)"', text)
    assert [kind for kind, _ in lines] == ["raw", "mean"] and all(len(points.split()) == 2 for _, points in lines)
    x, y = zip(*(map(float, point.split(",")) for point in lines[0][1].split()), strict=True)
    assert x[0] < x[1] and y[0] < y[1]  # y grows downwards
    assert "has no values" in line_chart("loss", [(1, 0.0)], log_y=True)


def test_the_average_follows_without_noise():
    values = [5.0 + (-1) ** i for i in range(400)]
    average = smooth(values, 40)
    assert average[0] == values[0] and all(abs(v - 5) < 0.1 for v in average[200:])
