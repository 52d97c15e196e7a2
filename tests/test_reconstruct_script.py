"""vae/reconstruct.py on a tiny saved autoencoder: what it writes, says and refuses."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from latentvid.data.video.reading import probe, read_frames
from latentvid.data.video.writing import write_video
from latentvid.models.autoencoder import CausalVideoAutoencoder

SCRIPT = Path(__file__).parents[1] / "vae" / "reconstruct.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reconstruct")
    CausalVideoAutoencoder(latent_channels=4, widths=(8, 8, 8)).save_pretrained(folder / "vae")
    clip = torch.randint(0, 256, (10, 18, 24, 3), dtype=torch.uint8)
    write_video(folder / "clip.mp4", clip, 12)
    write_video(folder / "image.png", clip[:1, :16], 12)
    return folder


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_videos_and_images_together(folder, tmp_path, monkeypatch, capsys):
    inputs = (folder / "clip.mp4", folder / "image.png")
    assert run(monkeypatch, "--vae", folder / "vae", *inputs, "--output", tmp_path / "o" / "out.mp4") == 0
    said = capsys.readouterr().out
    assert said.count("PSNR") == said.count("SSIM") == 2
    assert "18 x 24 pixels scaled and cropped to 16 x 24" in said and "over 10 frames" in said
    clip, image = (probe(tmp_path / "o" / f"out-{i}.mp4") for i in (0, 1))
    assert (clip.frames, clip.fps, clip.height, clip.width) == (10, 12, 16, 48)
    assert (image.frames, image.height, image.width) == (1, 16, 48)


def test_the_ending_and_max_frames_choose_what_is_written(folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.png"
    arguments = ("--vae", folder / "vae", folder / "clip.mp4", "--output", output, "--max-frames", 1)
    assert run(monkeypatch, *arguments) == 0
    assert (probe(output).height, probe(output).width) == (16, 48)
    assert "over 1 frame " in capsys.readouterr().out


def test_bf16_gives_nearly_the_same_pixels(folder, tmp_path, monkeypatch, capsys):

    for name, more in (("fp32", ("no",)), ("bf16", ("bf16",))):
        arguments = (
            "--vae",
            folder / "vae",
            folder / "image.png",
            "--output",
            tmp_path / f"{name}.png",
            "--mixed-precision",
        )
        assert run(monkeypatch, *arguments, *more) == 0
    exact, fast = (read_frames(tmp_path / f"{name}.png").float() for name in ("fp32", "bf16"))
    assert 0 < (exact - fast).abs().max() <= 8


def test_all_names_are_checked_before_the_work(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "out-1.mp4").mkdir()
    inputs = (folder / "clip.mp4", folder / "image.png")
    assert run(monkeypatch, "--vae", folder / "vae", *inputs, "--output", tmp_path / "out.mp4") == 2
    assert "out-1.mp4 is a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out-1.mp4"]


@pytest.mark.parametrize(
    ("vae", "name", "output", "more", "message"),
    [
        ("vae", "none.mp4", "out.mp4", (), "none.mp4"),
        ("vae", "clip.mp4", "out.avi", (), ".mp4, .webm, .gif, .png"),
        ("vae", "clip.mp4", "out.mp4", ("--max-frames", 0), "--max-frames 0"),
        ("nowhere", "clip.mp4", "out.mp4", (), "config.json is missing"),
    ],
)
def test_bad_input_is_one_message(folder, tmp_path, monkeypatch, capsys, vae, name, output, more, message):
    code = run(monkeypatch, "--vae", folder / vae, folder / name, "--output", tmp_path / output, *more)
    said = capsys.readouterr().err
    assert code == 2 and said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
