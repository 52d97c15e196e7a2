"""The page of a training run, and of several side by side."""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import Html

from latentvid.config.parsing import load_config, save_config
from latentvid.config.schema import DitConfig, DitData
from latentvid.config.sections import Run
from latentvid.data.video.writing import write_video
from latentvid.errors import UserError
from latentvid.report.__main__ import main
from latentvid.report.configuration import configuration, defaults
from latentvid.report.pages import write_report
from latentvid.report.reading import Faults, read_columns
from latentvid.report.runs import _with_sums, find_samples, labels, read_run, wall_time
from latentvid.report.scores import Score, figure, score_table

SHARES = {"data_wait": 0.1, "encode": 0.0, "compute": 0.6, "optimizer": 0.1, "checkpoint": 0.0, "validation": 0.1}


def make_run(folder: Path, *, lr: float = 1e-3, loss: float = 1.0, fvd: float = 100.0, shown=(10, 20)) -> Path:
    """A transformer's run of 30 steps, stopped and gone on with after 20, measured every 10."""
    folder.mkdir(parents=True)
    config = DitConfig(run=Run(dir=Path("runs/x")), data=DitData(manifest=Path("t.jsonl")), vae=Path("v"),
                       text_encoder="t5", model={"width": 48})  # fmt: skip
    config.optim.lr, config.samples.prompts = lr, ("a <b>7</b> moves", "an eight")
    save_config(config, folder / "config.yaml")
    rows = [{"step": i, "loss": loss / i, "critic": -0.1 * i, "lr": lr, "grad_norm": 1.0, "tokens": 1000, "samples": 4,
             "fill": 0.9, "balance": 0.95, "epoch": i / 10, "mfu": 0.3, "tokens_per_s": 500.0, **SHARES,
             "seconds": 2.0 * (i if i <= 20 else i - 20)} for i in range(1, 31)]  # fmt: skip
    _lines(folder / "metrics.jsonl", rows)
    figures = [(step, weights) for step in (10, 20, 30) for weights in ("ema", "raw")]
    _lines(folder / "validation.jsonl", [_validation(loss, fvd, *at) for at in figures])
    best = {"step": 20, "metric": "loss", "weights": "ema", "value": loss / 20}
    (folder / "best.json").write_text(json.dumps(best))
    facts = {
        "started": "2030-01-02T03:04:05",
        "versions": {"torch": "9.8.7"},
        "machine": {"cpu": "An <old> CPU", "cores": 2, "memory_gib": 23.4, "gpu": None},
        "strategy": "DDP",
        "world": 2,
        "parameters": 4_700_000,
        "data": "12 clips\n3 left out: too short",
        "plan": {"samples": 17, "tokens": 2000, "tokens_per_pack": 500, "packs_per_step": 2, "steps_per_epoch": 2.0,
                 "shapes": [{"grid": [5, 8, 8], "count": 3}, *({"grid": [1, 2, i], "count": 1} for i in range(1, 15))]},
        "starts": [{"time": f"2030-01-0{i}", "step": 20 * i, "strategy": "DDP", "world": 2} for i in (0, 1)],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    for step in shown:
        write_video(folder / "samples" / f"step-{step:06d}-ema.png", torch.zeros(1, 16, 90, 3, dtype=torch.uint8), 8)
        for i in range(2):
            noise = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(step))
            write_video(folder / "samples" / f"step-{step:06d}-ema-{i}.mp4", noise, 8)
    (folder / "evaluation").mkdir()
    score = {"value": fvd, "low": fvd - 5, "high": fvd + 5, "count": 64, "floor": 20.0, "floor_count": 32}
    score |= {"floor_of": "two parts of the real clips", "better": "lower"}
    found = {"scores": {"fvd": score}, "settings": {"frames": 17}, "notes": ["<one> clip was too short"]}
    (folder / "evaluation" / "scores.json").write_text(json.dumps(found))
    return folder


def _lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _validation(loss: float, fvd: float, step: int, weights: str) -> dict:
    bins = [{"from": i / 4, "to": (i + 1) / 4, "loss": loss / step * (i + 1), "x_mse": 0.1 * (i + 1)} for i in range(4)]
    line = {"step": step, "weights": weights, "loss": loss / step, "x_mse": 0.1, "bins": bins, "samples": 64}
    if weights == "ema":
        line["scores"] = {"fvd": {"value": fvd + step, "low": fvd, "high": 2 * fvd, "count": 32}, "is": {"value": None}}
    return line | {"seconds": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one")


def test_the_page_tells_all_of_a_run(run):
    path = write_report([run])
    page = Html.of(path)
    assert path == run / "report.html" and page.notes() == 1  # shapes that are not listed
    assert page.row("steps") == ["30 of 100,000"] and page.row("tokens") == ["30k"] and page.row("time") == ["60 s"]
    assert page.row("parameters") == ["4.70 M"] and page.row("processes") == ["2 (DDP)"]
    assert page.row("best of validation") == ["loss 0.05 at step 20 (averaged weights)"]
    assert page.row("tokens per second") == ["500"] and page.row("forward and backward") == ["60.0%"]
    charts = {svg["aria-label"] for svg in page.all("svg")}
    assert {"Loss of training and validation", "Part of the loss: critic", "Learning rate", "Gradient norm"} <= charts
    assert {"Score: FVD", "Shares of the time", "Square error of the clean latents", "Over the bins"} <= charts
    assert "last, step 30 (averaged weights)" in page.text and "0.75 to 1" in page.text
    assert "best, step 20 (averaged weights)" in page.text
    assert page.row("optim.lr") == ["0.001", "0.0001"] and page.row("model.width")[0] == "48"
    assert page.row("text_encoder") == ["t5", "null"] and not any(row[0] == "optim.clip" for row in page.rows)
    assert (
        page.row("5 x 8 x 8") == ["3", " 48.0%"]
        and "other shapes: 42.1%" in page.text
        and "3 left out: too short" in page.text
    )
    assert page.row("torch") == ["9.8.7"] and page.row("memory") == ["23.4 GiB"] and page.row("CPU") == ["An <old> CPU"]
    assert page.row("2030-01-01") == ["20", "DDP", "2"] and "1 of them after a stop" in page.text
    assert "<one> clip was too short" in page.text and "two parts of the real clips, 32 clips" in page.text
    assert "accelerate launch --num_processes 2 train/train_dit.py one/config.yaml --run.dir=one-again" in page.text


def test_the_stages_of_a_curriculum_are_marked_and_told_one_by_one(tmp_path):
    run = make_run(tmp_path / "run")
    stages = "stages=[{name: images, train: {steps: 20}}, {name: video, data: {max_area: 4096}, train: {steps: 40}}]"
    save_config(load_config(DitConfig, run / "config.yaml", [stages]), run / "config.yaml")
    about = json.loads((run / "run.json").read_text())
    facts = [{"number": 1, "name": "images", "begin": 0, "steps": 20, "data": "7 pictures"}]
    facts += [{"number": 2, "name": "video", "begin": 20, "steps": 40, "data": "5 films"}]
    (run / "run.json").write_text(json.dumps({**about, "stages": facts}))
    for name in ("metrics.jsonl", "validation.jsonl"):
        rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
        _lines(run / name, [{**row, "stage": 1 + (row["step"] > 20)} for row in rows])
    path = write_report([run])
    page, text = Html.of(path), path.read_text(encoding="utf-8")
    assert page.row("steps") == ["30 of 60, in stage video"]
    marks = [attrs for tag, attrs in page.found if tag == "line" and attrs.get("class") == "mark"]
    drawn = text.count("Learning rate</b>")
    assert drawn == 1 and len(marks) >= 8 and text.count(">video</text>") == len(marks) / 2
    places = {float(attrs["x1"]) for attrs in marks}
    assert len(places) >= 2 and all(58 <= place <= 468 for place in places)
    assert "7 pictures" in page.text and "5 films" in page.text and "cannot be shown" not in page.text
    assert page.row("stages.video.data.max_area")[0] == "4096" and "Part of the loss: stage" not in text


def test_samples_are_shown_by_step_with_their_prompts(run):
    page = Html.of(write_report([run]))
    assert len(page.all("video")) == 4 and len(page.all("img")) == 2 and page.text.count("a <b>7</b> moves") >= 2
    assert {"autoplay", "loop", "muted"} <= set(page.all("video")[0]) and "small" in page.all("video")[0]["class"]
    steps = [attrs for attrs in page.all("input") if attrs["name"] == page.all("input")[-1]["name"]]
    assert len(steps) == 2 and "checked" in steps[1] and "checked" not in steps[0]  # the newest


def test_what_a_run_lacks_is_said(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    page = Html.of(write_report([tmp_path]))
    for name in ("validation.jsonl", "samples.every", "evaluation/scores.json", "config.yaml", "run.json is missing"):
        assert page.text.count(name) == 1
    assert page.row("steps") == ["1"] and "Loss of training" in page.text
    sections = [a["href"] for a in page.all("a")]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(sections) == 4 and all(f">{name}</h2>" in text for name in ("Summary", "Curves", "Efficiency"))
    assert not any(f">{name}</h2>" in text for name in ("Validation", "Samples", "Evaluation", "Data", "Configuration"))
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "run.json").write_text("{}")
    assert "metrics.jsonl is missing or empty" in Html.of(write_report([tmp_path])).text


def test_a_full_page_leaves_out_the_oldest_clips_and_says_so(tmp_path):
    run = make_run(tmp_path / "one", shown=(10, 20, 30))
    encoded = {path.name: (path.stat().st_size + 2) // 3 * 4 for path in (run / "samples").iterdir()}
    room = sum(size for name, size in encoded.items() if name.endswith("png") or "000030" in name)
    page = Html.of(write_report([run], limit=room))
    assert len(page.all("video")) == 2 and len(page.all("img")) == 3
    assert "Left out, to hold the page to 0 MB: 4 clips of steps 10 to 20." in page.text
    newest = encoded["step-000030-ema.png"]
    page = Html.of(write_report([run], limit=newest))
    assert len(page.all("img")) == 1 and "2 grids of steps 10 to 20 and 6 clips of steps 10 to 30" in page.text


def test_runs_side_by_side(run, tmp_path):
    other = make_run(tmp_path / "two", lr=2e-3, loss=2.0, fvd=200.0, shown=(20, 30))
    page = Html.of(write_report([run, other], tmp_path / "x" / "page.html"))
    assert page.row("optim.lr") == ["0.001", "0.002"] and not any(row[0] == "run.dir" for row in page.rows)
    evaluated = [row for row in page.rows if row[0].startswith("FVD")][-1]
    assert "100.00" in evaluated[1] and "200.00" in evaluated[2]
    assert evaluated[-2:] == ["+100.00", "apart: one is better"]
    for word in (
        "by step",
        "by tokens",
        "by time",
        "one averaged weights",
        "two raw weights",
        "nothing at step 10",
        "nothing at step 30",
    ):
        assert word in page.text
    assert len(page.all("video")) == 8
    picked = [a["id"] for a in page.all("input") if "checked" in a][-1]
    text = (tmp_path / "x" / "page.html").read_text(encoding="utf-8")
    assert f'<label for="{picked}">20</label>' in text  # the newest step that both showed
    losses = text[text.index("Loss of training") :]
    lines = re.findall(r'<polyline class="mean" points="([^"]*)"', losses[: losses.index("</figure>")])
    ends = [tuple(map(float, points.split()[-1].split(","))) for points in lines]
    assert len(ends) == 2 and ends[0][0] == ends[1][0] and ends[0][1] > ends[1][1]  # same axes; the second is worse
    assert "12 clips" in page.text and "one, two" in page.text  # the data plan, once for both


def test_a_run_without_logs_leaves_the_other_its_name_and_colour(tmp_path):
    bare, other = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    for name in ("metrics.jsonl", "validation.jsonl"):
        (bare / name).unlink()
    path = write_report([bare, other])
    text, page = path.read_text(encoding="utf-8"), Html.of(path)
    assert "one: metrics.jsonl is missing" in page.text and "one: validation.jsonl is missing" in page.text
    assert page.row("steps") == ["", "30 of 100,000"]
    loss = text[text.index("<b>Loss of training</b>") :]
    loss = loss[: loss.index("</figure>")]
    assert set(re.findall(r"--c:var\((--c\d)\)", loss)) == {"--c1"} and "two" in loss and "one" not in loss


def test_curves_by_tokens_and_time_are_on_their_own_axis(run, tmp_path):
    """Half the tokens a step and as many steps: by tokens the curve ends half way."""
    other = make_run(tmp_path / "two")
    text = (other / "metrics.jsonl").read_text().replace('"tokens": 1000', '"tokens": 500')
    (other / "metrics.jsonl").write_text(text)
    text = write_report([run, other], tmp_path / "page.html").read_text(encoding="utf-8")
    panes = text.split('class="pane"')[1:4]
    lines = [re.findall(r'class="mean" points="([^"]*)"', pane[: pane.index("</figure>")]) for pane in panes]
    ends = [[float(points.split()[-1].split(",")[0]) for points in found] for found in lines]
    assert ends[0][0] == ends[0][1] and ends[2][0] == ends[2][1]
    assert 0.4 < (ends[1][1] - 58) / (ends[1][0] - 58) < 0.6


def test_losses_that_do_not_compare_are_a_warning(run, tmp_path):
    other = make_run(tmp_path / "two")
    assert "do not compare" not in Html.of(write_report([run, other], tmp_path / "page.html")).text
    file = other / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("weighting:\n  kind: none", "weighting:\n  kind: min_snr"))
    page = Html.of(write_report([run, other], tmp_path / "page.html"))
    assert "differ in weighting: the losses do not compare" in page.text
    file.write_text(text.replace("text_encoder: t5", "statistics_samples: 3").replace("stage: dit", "stage: vae"))
    assert "These are different models" in Html.of(write_report([run, other], tmp_path / "page.html")).text


def test_settings_of_scores_that_differ_are_a_warning(run, tmp_path):
    other = make_run(tmp_path / "two")
    file = other / "evaluation" / "scores.json"
    file.write_text(file.read_text().replace('"frames": 17', '"frames": 9'))
    page = Html.of(write_report([run, other], tmp_path / "page.html"))
    assert "The settings of the scores differ" in page.text and "frames: 17 (one), 9 (two)" in page.text


def test_a_comparison_with_another_model_is_shown(run):
    file = run / "evaluation" / "scores.json"
    found = json.loads(file.read_text())
    paired = {"value": 30.5, "other": 28.25, "difference": 2.25, "low": 1.5, "high": 3.0, "p": 0.0123, "effect": 0.8}
    paired |= {"wins": 0.75, "relative": 0.08, "pairs": 40, "units": 20, "better": "higher"}
    apart = {"value": 90.0, "other": 100.0, "difference": -10.0, "relative": -0.1, "better": "lower"}
    found["compared"] = {"psnr": paired, "fvd": apart}
    file.write_text(json.dumps(found | {"settings": {"against": "clips <of> B"}}))
    text = Html.of(write_report([run])).text
    assert "Pair by pair against clips <of> B" in text
    for words in ("2.250", "1.500 to 3.000", "0.012", "+0.80", "75 %", "40, 20 prompts", "-10.0 %"):
        assert words in text


def test_a_folder_of_runs_has_a_part_for_each(tmp_path):
    for name in ("b", "a"):
        make_run(tmp_path / "runs" / name)
    page = Html.of(write_report([tmp_path / "runs"]))
    assert [a["href"] for a in page.all("a")] == ["#p0", "#p1", "#p2"] and "Training runs: runs" in page.text
    assert "contact_sheet.png" not in page.text


def test_folders_that_are_no_runs_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="no folder.*make demo"):
        write_report([tmp_path / "none"])
    with pytest.raises(UserError, match="neither a training run .*metrics.jsonl.* nor a demo"):
        write_report([tmp_path])
    with pytest.raises(UserError, match="one is a training run and .* is not"):
        write_report([run, tmp_path])
    with pytest.raises(UserError, match="given twice"):
        write_report([run, run])
    (tmp_path / "config.yaml").write_text("- 1\n")
    assert "config.yaml: holds no mapping" in Html.of(write_report([tmp_path])).text


def test_a_page_that_cannot_be_written_is_said_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr("latentvid.report.pages.read_run", None)  # it does not come to that
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="--out .*folder is a folder"):
        write_report([run], tmp_path / "folder")
    with pytest.raises(UserError, match="its name has 300 bytes"):
        write_report([run], tmp_path / ("x" * 300))


def test_the_command_names_its_page(run, tmp_path, monkeypatch, capsys):
    other = make_run(tmp_path / "two")
    monkeypatch.setattr(sys, "argv", ["report", str(run), str(other)])
    main()
    assert capsys.readouterr().out.strip() == str(run / "comparison.html")
    monkeypatch.setattr(sys, "argv", ["report", str(run), "--out", str(tmp_path / "p.html")])
    main()
    assert (tmp_path / "p.html").is_file()


def test_columns_hold_numbers_and_know_gaps(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 1, "loss": null}\nnonsense\n{"step": 2, "loss": 0.5, "new": 3, "why": "x"}\n{"step": 3, "l'
    )
    columns = _with_sums(read_columns(file, tmp_path, faults := Faults()))
    assert faults.lines == ["metrics.jsonl: 1 of 4 lines are no records, line 2 the first"]
    assert columns["step"].tolist() == [1, 2] and "why" not in columns
    assert math.isnan(columns["loss"][0]) and columns["loss"][1] == 0.5
    assert math.isnan(columns["new"][0]) and columns["new"][1] == 3


def test_time_goes_on_after_a_stop():
    assert wall_time(np.array([10.0, 20.0, 5.0, 7.0])).tolist() == [10, 20, 25, 27]


def test_samples_are_found_by_step_and_weights(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("step-000010-raw.png", "step-000010-ema.png", "step-000010-ema-0.mp4", "step-000010-ema-11.png",
                 "step-000002-ema.png", "step-000010-ema.mp4", "step-000010-other.png", "notes.png"):  # fmt: skip
        (tmp_path / "samples" / name).touch()
    found = find_samples(tmp_path, Faults())
    assert list(found) == [2, 10] and set(found[10]) == {"ema", "raw"} and not found[10]["raw"].clips
    assert {n: p.name for n, p in found[10]["ema"].clips.items()} == {
        0: "step-000010-ema-0.mp4", 11: "step-000010-ema-11.png"}  # fmt: skip
    assert found[10]["ema"].grid.name == "step-000010-ema.png"


def test_labels_are_as_short_as_tells_them_apart():
    assert labels([Path("x/a/dit"), Path("x/b/dit")]) == ["a/dit", "b/dit"]
    assert labels([Path("x/a"), Path("y/b")]) == ["a", "b"]


def test_only_what_differs_from_the_defaults_is_listed(run):
    found = read_run(run, "one")
    listed = {row[0] for row in Html(configuration([found])).rows[1:]}
    asked = {"optim.lr", "samples.prompts", "data.manifest", "model.width"}
    assert listed == asked | {"run.dir", "vae", "text_encoder"}  # these have no default
    assert defaults(found)["model.heads"] and defaults(found)["scheduler.path"]
    foreign = replace(found, kind="vae", config={"model": {"_class_name": "AutoencoderKLWan"}})
    assert "model.widths" not in defaults(foreign) and "model.widths" in defaults(replace(foreign, config={}))


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ({"low": 4, "high": 6}, "overlap"),
        ({"low": 3.5, "high": 3.9}, "apart: a is better"),
        ({"low": 6.1, "high": 7}, "apart: b is better"),
        ({}, "not known"),
    ],
)
def test_intervals_that_overlap_decide_nothing(second, verdict):
    scores = [{"x": Score.of({"value": 5, "better": "higher"} | one)} for one in ({"low": 4, "high": 6}, second)]
    assert Html(score_table(["a", "b"], scores)).row("x")[-1] == verdict
    lower = [{"x": Score(5, 4, 6, better="lower")}, {"x": Score(7, 6.5, 8, better="lower")}]
    assert Html(score_table(["a", "b"], lower)).row("x")[-1] == "apart: a is better"


@pytest.mark.parametrize(("value", "text"), [(123.456, "123.46"), (0.5, "0.500"), (0.02, "0.0200"), (0, "0.000")])
def test_figures_have_digits_enough(value, text):
    assert figure(value) == text
