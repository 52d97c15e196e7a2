"""The programs with --model of a published repository: they write clips, or say what the model is for."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from latentvid.data.video.reading import probe

INFERENCE = Path(__file__).resolve().parents[2] / "inference"
SMALL = ["--steps", "2", "--seed", "1", "--device", "cpu", "--mixed-precision", "no", "--guidance", "2"]


def run(monkeypatch, program: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments), *SMALL])
    runpy.run_path(str(INFERENCE / program), run_name="__main__")


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    files = [tmp_path / f"{color}.png" for color in ("red", "blue")]
    for file in files:
        Image.new("RGB", (48, 32), file.stem).save(file)
    return files


def test_t2v(repository, monkeypatch, tmp_path):
    """Two prompts are one pack; the rate is the model's."""
    sizes = ["--frames", "5", "--height", "32", "--width", "48"]
    prompts = ["--prompt", "a red 7", "--prompt", "a blue 3"]
    run(monkeypatch, "t2v.py", "--model", repository("wan_experts"), *prompts, *sizes, "--output", tmp_path / "a.mp4")
    info = probe(tmp_path / "a-1.mp4")
    assert (info.frames, info.height, info.width, info.fps) == (5, 32, 48, 16.0)


@pytest.mark.parametrize("kind", ["wan_image", pytest.param("wan_clip", marks=pytest.mark.slow), "wan"])
def test_i2v(repository, monkeypatch, tmp_path, pictures, kind):
    """A model of text alone is led to the picture."""
    words = ["--image", pictures[0], "--prompt", "a red 7", "--frames", 5, "--output", tmp_path / "a.mp4"]
    run(monkeypatch, "i2v.py", "--model", repository(kind), *words)
    assert (probe(tmp_path / "a.mp4").frames, probe(tmp_path / "a.mp4").width) == (5, 48)


def test_interpolate_with_a_model_of_both_pictures(repository, monkeypatch, tmp_path, pictures, capsys):
    words = ["--first", pictures[0], "--last", pictures[1], "--between", 3, "--output", tmp_path / "a.mp4"]
    run(monkeypatch, "interpolate.py", "--model", repository("wan_ends"), *words)
    assert probe(tmp_path / "a.mp4").frames == 5 and "nearest in time" not in capsys.readouterr().out


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("long.py", "inpaint.py", "edit.py")]


@pytest.mark.parametrize("program", ["t2v.py", *SLOW])
def test_what_a_model_of_pictures_does_not_do_is_said(repository, monkeypatch, tmp_path, pictures, program, capsys):
    words = {
        "t2v.py": ["--frames", 5, "--height", 32, "--width", 32],
        "long.py": ["--frames", 5, "--height", 32, "--width", 32],
        "inpaint.py": ["--clip", pictures[0], "--mask", pictures[1]],
        "edit.py": ["--clip", pictures[0], "--method", "sdedit"],
    }[program]
    if program == "inpaint.py":
        Image.new("RGB", (48, 32), "white").save(pictures[1])
    with pytest.raises(SystemExit):
        run(
            monkeypatch,
            program,
            *("--model", repository("wan_image"), "--prompt", "a red 7", "--output", tmp_path / "a.mp4"),
            *words,
        )
    assert "makes videos from pictures alone: give it one, with inference/i2v.py" in capsys.readouterr().err


def test_a_published_model_edits_by_flow_and_says_that_it_shares_no_attention(
    repository, monkeypatch, tmp_path, pictures, capsys
):
    words = ["--model", repository("wan"), "--clip", pictures[0], "--prompt", "a red 7", "--output", tmp_path / "a.png"]
    run(monkeypatch, "edit.py", *words, "--method", "flow", "--source", "a blue 3", "--n-max", 1)
    assert (probe(tmp_path / "a.png").frames, probe(tmp_path / "a.png").width) == (1, 48)
    with pytest.raises(SystemExit):
        run(monkeypatch, "style.py", *words, "--style", pictures[1])
    assert "train it with a reference of role style" in capsys.readouterr().err
