"""`python -m latentvid.preference`: two clips a prompt, and which of two is preferred, by scores and by people."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scripting import refused

from latentvid import commands
from latentvid.data.manifest.manifest import read_manifest
from latentvid.data.video.reading import read_frames
from latentvid.data.video.writing import write_video
from latentvid.demo.digits import Label, render
from latentvid.evaluation.compare import digest_of
from latentvid.evaluation.mean_score import MeanScore
from latentvid.evaluation.preference.key import Key, Pair
from latentvid.preference.pairs import Pairs

BOTH, COLOUR = "latentvid.demo.prompt_following:both", "latentvid.demo.prompt_following:colour"


@pytest.fixture
def command(monkeypatch, capsys):
    """`command("label", "A", ...)`: (status, stdout, stderr)."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["preference", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            commands.preference()
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return command


def show(folder: Path, name: str, digit: int, colour: str, prompt: str) -> None:
    label = Label(digit=digit, colour=colour, direction="right", verb="moves")
    clip = render(label, 9, (32, 32), np.random.default_rng(7), heldout=False)
    write_video(folder / f"{name}.mp4", clip, 8.0)
    (folder / f"{name}.txt").write_text(prompt)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Of four prompts: A is right, B is right, both are, and both but for B's colour."""
    root = tmp_path_factory.mktemp("made")
    a, b = root / "a", root / "b"
    for folder in (a, b):
        folder.mkdir()
    prompt = "a red 7 moves right"
    for name, first, second in (
        ("w", (7, "red"), (0, "red")),
        ("x", (0, "red"), (7, "red")),
        ("y", (7, "red"), (7, "red")),
        ("z", (7, "red"), (7, "blue")),
    ):
        show(a, name, *first, prompt)
        show(b, name, *second, prompt)
    return a, b


def rows(table: Path) -> list[dict]:
    return [json.loads(line) for line in table.read_text().splitlines()]


def test_the_first_score_that_differs_decides_and_ties_are_counted(folders, command):
    a, b = folders
    out = a.parent / "pairs.jsonl"
    status, said, errors = command("label", a, b, "--score", BOTH, "--out", out)
    assert status == 0, errors
    assert "2 pairs, the first folder's clip preferred in 1; 2 ties left out" in said
    w, x = rows(out)
    assert w == {"path": "a/w.mp4", "rejected": "b/w.mp4", "caption": "a red 7 moves right", "preferred_both": 1.0,
                 "rejected_both": 0.0}  # fmt: skip
    assert (x["path"], x["rejected"]) == ("b/x.mp4", "a/x.mp4")
    status, said, errors = command("label", a, b, "--score", BOTH, "--score", COLOUR, "--out", out)
    assert status == 0 and "3 pairs" in said and "1 ties" in said, errors
    z = rows(out)[2]
    assert z["path"] == "a/z.mp4" and (z["preferred_colour"], z["rejected_colour"]) == (1.0, 0.0)


def test_of_several_clips_the_best_and_the_worst_are_a_pair(folders, command, tmp_path):
    """Between the right ones the colour decides; equal ones go by the order of the folders."""
    a, b = folders
    for name in "cd":
        (tmp_path / name).mkdir()
    for name in "wxyz":
        show(tmp_path / "c", name, 0, "blue", "a red 7 moves right")
        show(tmp_path / "d", name, 7, "red", "a red 7 moves right")
    out = tmp_path / "pairs.jsonl"
    asked = ("--score", BOTH, "--score", COLOUR, "--out", out)
    status, said, errors = command("label", b, a, tmp_path / "c", tmp_path / "d", *asked)
    assert status == 0 and "4 pairs, the first folder's clip preferred in 2; 0 ties left out" in said, errors
    assert [(Path(row["path"]), row["rejected"]) for row in rows(out)] == [
        (a / "w.mp4", "c/w.mp4"), (b / "x.mp4", "c/x.mp4"), (b / "y.mp4", "c/y.mp4"), (a / "z.mp4", "c/z.mp4")
    ]  # fmt: skip
    (tmp_path / "d/z.mp4").unlink()
    assert f"{tmp_path / 'd'} lacks 1 clip of {b} (z.mp4)" in refused(
        command("label", b, a, tmp_path / "c", tmp_path / "d", *asked)
    )
    assert "give two folders or more" in refused(command("label", b, *asked))
    assert f"{b} and {b} are one folder" in refused(command("label", b, a, b, *asked))


def test_a_score_called_as_a_column_of_manifests_leaves_the_pairs_whole(folders):
    a, b = folders
    found, out = Pairs(), a.parent / "pairs.jsonl"
    found.add([a / "w.mp4", b / "w.mp4"], "a red 7 moves right", (1, 0), [{"frames": 0.25}, {"frames": 1.0}])
    found.write(out)
    manifest = read_manifest(out)
    assert len(manifest.samples) == 1 and not manifest.dropped
    assert [(row["preferred_frames"], row["rejected_frames"]) for row in rows(out)] == [(1.0, 0.25)]


def test_less_is_preferred_where_less_is_better(folders, command, tmp_path):
    a, b = folders
    status, _, errors = command("label", a, b, "--score", "flicker", "--out", tmp_path / "pairs.csv")
    assert status == 0, errors
    head, *lines = [line.split(",") for line in (tmp_path / "pairs.csv").read_text().splitlines()]
    assert lines
    for line in lines:
        row = dict(zip(head, line, strict=True))
        assert float(row["preferred_flicker"]) < float(row["rejected_flicker"])


def test_scores_that_are_no_numbers_are_left_out(folders, command, tmp_path, monkeypatch):
    values = iter([float("nan"), 1.0, 2.0, 1.0, 1.0, 1.0, 0.0, float("nan")])
    monkeypatch.setattr(MeanScore, "of_clip", lambda self, rows: next(values))
    status, said, errors = command("label", *folders, "--score", "flicker", "--out", tmp_path / "pairs.jsonl")
    assert status == 0, errors
    assert "1 pair," in said and "1 ties left out, 2 left out (flicker is no number)" in said


def test_what_says_nothing_of_two_clips_is_refused(folders, command, tmp_path):
    a, b = folders
    out = tmp_path / "pairs.jsonl"
    assert "--score motion: does not say of two clips which is better" in refused(
        command("label", a, b, "--score", "motion", "--out", out)
    )
    (tmp_path / "bare").mkdir(), (tmp_path / "plain").mkdir()
    for folder in ("bare", "plain"):
        write_video(tmp_path / folder / "w.mp4", read_frames(a / "w.mp4"), 8.0)
    said = refused(command("label", tmp_path / "bare", tmp_path / "plain", "--score", "flicker", "--out", out))
    assert "have no prompts" in said
    equal = (folders[0], tmp_path / "copy")
    equal[1].mkdir()
    for file in equal[0].iterdir():
        (equal[1] / file.name).write_bytes(file.read_bytes())
    assert "no pair is left: 4 ties left out" in refused(command("label", *equal, "--score", BOTH, "--out", out))
    assert "ends in .jsonl" in refused(command("label", a, b, "--score", BOTH, "--out", tmp_path / "pairs.txt"))
    assert not out.exists()


def test_a_device_that_is_not_here_is_refused(command, tmp_path):
    out = ("--out", tmp_path / "pairs.jsonl")
    said = refused(command("label", "a", "b", "--score", "flicker", "--device", "nowhere", *out))
    assert "device nowhere cannot be used here" in said


def test_people_s_choices_become_pairs(folders, command, tmp_path):
    a, b = folders
    pairs = (
        Pair("w", "A", "B"),
        Pair("x", "A", "B"),
        Pair("y", "B", "A"),
        Pair("w", "noise", "A"),
        Pair("z", "A", "B"),
    )
    pairs = tuple(Pair(f"{pair.name}.mp4", pair.left, pair.right) for pair in pairs)
    key = Key(str(a), str(b), 0, ("Better?", "Sharper?"), digest_of({"A": a, "B": b}, pairs), pairs)
    key.write(tmp_path)
    files = []
    for name, letters in (("one", "lrrl-"), ("two", "ltlr-"), ("three", "rrt--")):
        made = [{"question": "Better?", "pair": n, "choice": {"l": "left", "t": "tie", "r": "right"}[c]}
                for n, c in enumerate(letters, 1) if c != "-"]  # fmt: skip
        files.append(tmp_path / f"choices-{name}.json")
        files[-1].write_text(json.dumps({"page": key.page, "rater": name, "choices": made}))
    out = tmp_path / "pairs.jsonl"
    status, said, errors = command("choices", tmp_path, *files, "--question", "Better?", "--out", out)
    assert status == 0, errors
    assert "2 pairs, the first folder's clip preferred in 1; 1 ties left out, 1 left out (nobody chose)" in said
    w, x = rows(out)
    assert (w["path"], w["rejected"], w["preferred_votes"], w["rejected_votes"]) == (
        str(a / "w.mp4"),
        str(b / "w.mp4"),
        2,
        1,
    )
    assert (x["path"], x["preferred_votes"], x["rejected_votes"]) == (str(b / "x.mp4"), 2, 0)
    assert x["caption"] == "a red 7 moves right"
    assert "the page asks several" in refused(command("choices", tmp_path, *files, "--out", out))
    assert "does not ask 'Nicer?'" in refused(
        command("choices", tmp_path, *files, "--question", "Nicer?", "--out", out)
    )
    changed, moved = Key(str(a), str(b), 0, key.questions, "0", pairs), Key("a", str(b), 0, key.questions, "0", pairs)
    for other, said in ((changed, "are others than those that the page"), (moved, "a, whose clips the page")):
        other.write(tmp_path)
        choices = json.loads(files[0].read_text()) | {"page": other.page}
        (tmp_path / "other.json").write_text(json.dumps(choices))
        words = ("choices", tmp_path, tmp_path / "other.json", "--question", "Better?", "--out", tmp_path / "x.jsonl")
        assert said in refused(command(*words))
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_model_makes_two_clips_of_every_prompt(tiny_pipeline, command, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a red 7 moves up"}\n{"prompt": "a blue 3 moves left", "seed": 4}\n')
    words = ("sample", "--model", tiny_pipeline, "--prompts", prompts, "--output", tmp_path / "made", "--device", "cpu")
    status, said, errors = command(*words, "--mixed-precision", "no")
    assert status == 0, errors
    a, b = (rows(tmp_path / "made" / name / "results.jsonl") for name in "ab")
    assert [r["prompt"] for r in a] == [r["prompt"] for r in b] == ["a red 7 moves up", "a blue 3 moves left"]
    assert [r["seed"] for r in a] == [0, 4] and [r["seed"] for r in b] == [2, 6]
    first, second = (read_frames(tmp_path / "made" / name / "00000.mp4") for name in "ab")
    assert first.shape == second.shape and not torch.equal(first, second)
    out = tmp_path / "made" / "pairs.jsonl"
    status, said, errors = command(
        "label", tmp_path / "made/a", tmp_path / "made/b", "--score", "flicker", "--out", out
    )
    assert status == 0 and len(rows(out)) == 2, errors
    assert "give a folder" in refused(command(*words[:6], tmp_path / "made.mp4"))
    assert "--clips 27: there are folders for 26" in refused(command(*words, "--clips", 27))
    status, _, errors = command(*words, "--mixed-precision", "no", "--clips", 3)  # goes on with a third
    assert status == 0, errors
    assert [r["seed"] for r in rows(tmp_path / "made/c/results.jsonl")] == [4, 8]


def test_unknown_commands_are_refused(command):
    assert "invalid choice: 'lable'" in refused(command("lable"))
    status, said, _ = command("--help")
    assert status == 0 and "sample" in said and "choices" in said
