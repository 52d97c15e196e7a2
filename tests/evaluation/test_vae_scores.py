"""vae/evaluate.py end to end on tiny clips and random networks: what it writes, says, leaves out and refuses."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from random_networks import i3d_weights, lpips_weights
from safetensors.torch import save_file

from latentvid.data.transforms import from_uint8, resize_and_crop, to_uint8
from latentvid.data.video.reading import probe, read_frames
from latentvid.data.video.writing import write_video
from latentvid.evaluation.footage import Cut, cut_files, find_files
from latentvid.evaluation.pairs.lpips import load_lpips
from latentvid.evaluation.pairs.reconstruction import evaluate, reconstruct
from latentvid.evaluation.sets.i3d import load_i3d
from latentvid.evaluation.sets.scores import FrechetScore
from latentvid.evaluation.vae import scores as vae_scores
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.interchange import load_vae

SCRIPT = Path(__file__).parents[2] / "vae" / "evaluate.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """footage/: two clips, an image, one file that is cut short and one that is too small; the networks beside it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("scores")
    CausalVideoAutoencoder(latent_channels=4, widths=(8, 8, 8)).save_pretrained(folder / "vae")
    (folder / "lpips").mkdir()
    save_file(lpips_weights("alex"), folder / "lpips" / "alex.safetensors")
    save_file(i3d_weights(), folder / "i3d.safetensors")
    clip = torch.randint(0, 256, (20, 40, 52, 3), dtype=torch.uint8)
    write_video(folder / "footage" / "a.mp4", clip, 12)
    write_video(folder / "footage" / "deep" / "b.mp4", clip[:12].flip(0), 12)
    write_video(folder / "footage" / "c.png", clip[:1], 12)
    write_video(folder / "footage" / "tiny.png", clip[:1, :8, :8], 12)
    (folder / "footage" / "cut.mp4").write_bytes((folder / "footage" / "a.mp4").read_bytes()[:-500])
    (folder / "footage" / "notes.txt").write_text("no footage")
    return folder


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_all_scores_are_those_of_the_clips_taken_one_by_one(folder, tmp_path, monkeypatch, capsys):
    weights = ("--lpips", folder / "lpips", "--i3d", folder / "i3d.safetensors")
    where = ("--vae", folder / "vae", folder / "footage", "--out", tmp_path / "o")
    assert run(monkeypatch, *where, *weights, "--frames", 9, "--size", "36x40") == 0
    result = json.loads((tmp_path / "o" / "scores.json").read_text())
    of = [(Path(clip["file"]).name, clip["start"], clip["frames"]) for clip in result["per_clip"]]
    assert of == [("a.mp4", 0, 9), ("a.mp4", 9, 9), ("c.png", 0, 1), ("b.mp4", 0, 9)]
    assert sorted(Path(row["file"]).name for row in result["skipped"]) == ["cut.mp4", "tiny.png"]

    vae, perceptual, network = (
        load_vae(folder / "vae"),
        load_lpips(folder / "lpips", "alex"),
        load_i3d(folder / "i3d.safetensors"),
    )
    real, copied = [], []
    for clip in result["per_clip"]:
        video = resize_and_crop(read_frames(clip["file"], clip["start"], clip["frames"]), 36, 40)
        again = from_uint8(to_uint8(reconstruct(vae, video)))
        assert (clip["psnr"], clip["ssim"]) == pytest.approx(evaluate(vae, [video])["per_clip"][0], rel=1e-5)
        distance = perceptual(video.movedim(0, 1), again.movedim(0, 1)).mean()
        assert clip["lpips"] == pytest.approx(float(distance), rel=1e-4)
        if clip["frames"] == 9:
            real.append(network(video[None]))
            copied.append(network(again[None]))
    distance = FrechetScore("rfvd", "i3d")(copied, real)
    assert result["rfvd"] == pytest.approx(distance, rel=1e-3) and result["rfvd_clips"] == 3
    assert result["mean"]["psnr"] == pytest.approx(sum(clip["psnr"] for clip in result["per_clip"]) / 4)
    assert result["compression"]["pixel_values_per_latent_value"] == 3 * 4 * 16 / 4
    assert result["latents"]["clips"] == 4 and result["latents"]["channels"] == 4

    said = capsys.readouterr().out
    assert said.strip() == (tmp_path / "o" / "scores.md").read_text().strip()
    assert "cut.mp4: is cut short" in said and "bias" in said
    shown = sorted(path.name for path in (tmp_path / "o" / "clips").iterdir())
    assert shown == ["00-a-0.mp4", "01-a-9.mp4", "02-c-0.png", "03-b-0.mp4"]
    assert (probe(tmp_path / "o" / "clips" / "01-a-9.mp4").frames, probe(tmp_path / "o" / "sheet.png").frames) == (9, 1)
    assert probe(tmp_path / "o" / "clips" / shown[0]).width == 3 * 40 and (tmp_path / "o" / "latents.svg").exists()


def test_without_networks_their_scores_are_left_out_and_that_is_said(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    source = folder / "footage" / "a.mp4"
    assert run(monkeypatch, "--vae", folder / "vae", source, "--out", tmp_path / "o", "--max-clips", 1) == 0
    said, result = capsys.readouterr().out, json.loads((tmp_path / "o" / "scores.json").read_text())
    assert result["mean"]["lpips"] is None and result["rfvd"] is None and result["clips"] == 1
    assert "LPIPS is left out" in said and "rFVD is left out" in said
    clip = result["per_clip"][0]
    assert (clip["frames"], clip["height"], clip["width"]) == (17, 40, 52)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("footage", "--lpips", "none.safetensors"), "no LPIPS weights"),
        (("footage", "--i3d", "none.safetensors"), "no I3D weights"),
        (("footage", "--frames", 8), "8 frames"),
        (("footage", "--frames", 5, "--i3d", "i3d.safetensors"), "rFVD takes clips of 9 frames"),
        (("footage", "--size", "30x40"), "30 x 40 pixels"),
        (("footage", "--max-clips", 0), "--max-clips 0: must be"),
        (("nowhere",), "nowhere cannot be found"),
        (("vae",), "holds no video or image"),
        (("footage/cut.mp4",), "no clip can be used"),
    ],
)
def test_bad_input_is_one_message(folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    code = run(monkeypatch, "--vae", "vae", *arguments, "--out", tmp_path / "o")
    said = capsys.readouterr().err
    assert code == 2 and said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["scores.json", "sheet.png"])
def test_what_cannot_be_written_is_said_before_the_work(name, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "o" / name).mkdir(parents=True)
    monkeypatch.setattr(vae_scores, "load_vae", None)  # it does not come to that
    for out, message in ((tmp_path / "o", f"{name} is a folder"), (tmp_path / ("x" * 256), "its name has 256 bytes")):
        assert run(monkeypatch, "--vae", folder / "vae", folder / "footage", "--out", out) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["o", name]


def test_a_long_name_is_cut_in_the_name_of_what_is_shown(folder, tmp_path, monkeypatch):
    clip = tmp_path / f"{'n' * 250}.png"
    clip.write_bytes((folder / "footage" / "c.png").read_bytes())
    assert run(monkeypatch, "--vae", folder / "vae", clip, "--out", tmp_path / "o") == 0
    (shown,) = (tmp_path / "o" / "clips").iterdir()
    assert shown.name.startswith("00-nnn") and shown.name.endswith("-0.png")


def test_diffusers_autoencoders_are_scored_too(folder, tmp_path, monkeypatch, capsys):
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    sizes = dict(base_dim=4, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True])
    AutoencoderKLWan(**sizes, latents_mean=[0.0] * 4, latents_std=[1.0] * 4).save_pretrained(tmp_path / "wan")
    where = ("--vae", tmp_path / "wan", folder / "footage" / "deep", "--out", tmp_path / "o")
    assert run(monkeypatch, *where, "--frames", 5, "--size", 32) == 0
    result = json.loads((tmp_path / "o" / "scores.json").read_text())
    assert (result["class"], result["clips"], result["compression"]["spatial_stride"]) == ("AutoencoderKLWan", 2, 4)
    assert "AutoencoderKLWan on 2 clips" in capsys.readouterr().out


def test_clips_are_shared_among_files_and_spread_over_each(folder):
    files = find_files([folder / "footage"])
    assert [path.name for path in files] == ["a.mp4", "c.png", "cut.mp4", "b.mp4", "tiny.png"]
    cut = Cut(frames=5, size=(16, 16), temporal_stride=4, spatial_stride=4)
    taken = lambda most: [(e.path.name, e.start) for e in cut_files(files, cut, most)[0] if e.frames > 1]  # noqa: E731
    assert taken(None) == [("a.mp4", s) for s in (0, 5, 10, 15)] + [("b.mp4", s) for s in (0, 5)]
    assert taken(3) == [("a.mp4", 10), ("b.mp4", 5)]  # c.png is the third
    assert taken(5) == [("a.mp4", 5), ("a.mp4", 15), ("b.mp4", 0), ("b.mp4", 5)]
    assert taken(1) == [("a.mp4", 10)] and taken(100) == taken(None)
    native = Cut(frames=5, size=None, temporal_stride=4, spatial_stride=4, smallest=11)
    excerpts, skipped = cut_files(files, native, None)
    assert [path.name for path, _ in skipped] == ["cut.mp4", "tiny.png"] and excerpts[0].read().shape == (5, 40, 52, 3)
