"""The command lines: what they write, and one `error:` line with status 2 for bad input."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from scripting import refused

from latentvid.data.video.reading import probe, read_frames
from latentvid.errors import UserError

ROOT = Path(__file__).parents[1]
T2V = "inference/t2v.py"
TRAIN_DIT = "train/train_dit.py"


def test_t2v_from_the_shell(tiny_pipeline, tmp_path):
    """The real command, away from the repository's folder, with every option."""
    output = tmp_path / "new folder" / "clip.mp4"
    done = subprocess.run(
        [sys.executable, str(ROOT / T2V), "--prompt", "a red 7 moves up", "--model", str(tiny_pipeline)]
        + ["--output", str(output), "--frames", "9", "--height", "48", "--width", "32", "--steps", "2"]
        + ["--guidance", "2.5", "--negative-prompt", "blue", "--seed", "3", "--fps", "12", "--device", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{output}: a red 7 moves up"
    assert "Traceback" not in done.stderr and "sampling" in done.stderr  # the progress bar
    info = probe(output)
    assert (info.frames, info.height, info.width, info.fps) == (9, 48, 32, 12.0)
    assert list(output.parent.iterdir()) == [output]


def test_t2v_writes_gifs_and_pictures(run, tiny_pipeline, tmp_path):
    base = ("--prompt", "a red 7", "--model", tiny_pipeline, "--steps", 1)
    assert run(T2V, *base, "--output", tmp_path / "a.gif", "--frames", 5, "--fps", 10)[0] == 0
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (5, (32, 32), 100)
    assert run(T2V, *base, "--output", tmp_path / "one.PNG", "--frames", 1, "--width", 40)[0] == 0
    with Image.open(tmp_path / "one.PNG") as picture:
        assert picture.size == (40, 32)
    assert run(T2V, *base, "--output", tmp_path / "sheet.png")[0] == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] * sheet.size[1] >= 5 * 32 * 32


def test_t2v_takes_several_prompts_and_repeats_itself(run, tiny_pipeline, tmp_path):
    both = ("--model", tiny_pipeline, "--prompt", "a red 7", "--prompt", "a blue 3", "--seed", 8)
    for name in ("a", "b"):
        status, said, _ = run(T2V, *both, "--output", tmp_path / f"{name}.png")
        assert status == 0 and [line.split(": ")[1] for line in said.splitlines()] == ["a red 7", "a blue 3"]
    for i in (0, 1):
        assert (tmp_path / f"a-{i}.png").read_bytes() == (tmp_path / f"b-{i}.png").read_bytes()
    assert (
        run(T2V, "--model", tiny_pipeline, "--prompt", "a blue 3", "--seed", 9, "--output", tmp_path / "c.png")[0] == 0
    )
    alone, packed = (read_frames(tmp_path / name).int() for name in ("c.png", "a-1.png"))
    assert (alone - packed).abs().max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "x.avi"], r"--output x.avi: the name must end in .mp4, .webm, .gif, .png"),
        (["--model", "nowhere"], "there is no model folder nowhere: give another, or train one (make demo)"),
        (["--height", "30"], "30 x 32 pixels: this model makes multiples of 8, such as 32 x 32"),
        (["--frames", "4"], "4 frames: this VAE takes 1 + 4k frames, such as 1 or 5"),
        (["--steps", "0"], "--steps 0: must be a whole number"),
        (["--fps", "0"], "--fps 0: must be a finite number"),
        (["--output", "x.gif", "--fps", "60"], "at most 50 frames a second"),
        (["--negative-prompt", "word " * 60], "is longer than the text encoder's 24"),
        (["--device", "nonsense"], "nonsense"),
    ],
)
def test_t2v_refuses(options, message, run, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(run(T2V, "--prompt", "a red 7", "--model", tiny_pipeline, *options))
    assert message in said and not list(tmp_path.iterdir())


def test_t2v_refuses_a_model_without_weights(run, tiny_pipeline, tmp_path):
    model = shutil.copytree(tiny_pipeline, tmp_path / "model")
    (model / "transformer/diffusion_pytorch_model.safetensors").unlink()
    assert "has no weights" in refused(run(T2V, "--prompt", "a red 7", "--model", model))


def test_t2v_wants_a_prompt(run):
    status, _, said = run(T2V)
    assert status == 2 and "--prompt" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optim.lrr=1e-4"], "unknown key optim.lrr (value '1e-4'): did you mean optim.lr?"),
        (["--lr=1e-4"], "unknown key lr (value '1e-4'): did you mean optim.lr?"),
        (["--train.steps=many"], "train.steps='many': expected int"),
        (
            ["--optim.name=adam"],
            "optim.name='adam': expected one of 'adamw', 'adamw8bit', 'muon' (did you mean 'adamw'?)",
        ),
        (["--data.latents=none", "--data.manifest=gone.jsonl"], "gone.jsonl: there is no such manifest"),
        (["--data.latents=gone"], "gone holds no finished latent cache"),
        (["--vae=gone"], "gone holds no VAE"),
        (["--text_encoder=gone/t5"], "gone/t5"),
        (["--train.ema=2"], "train.ema=2: must be a finite number at least 0 and below 1"),
    ],
)
def test_train_dit_refuses(options, message, run, dit_config, tmp_path):
    from latentvid.config.parsing import save_config

    save_config(dit_config(tmp_path / "run"), tmp_path / "config.yaml")
    assert message in refused(run(TRAIN_DIT, tmp_path / "config.yaml", *options))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_train_dit_refuses_a_missing_configuration(run, tmp_path):
    assert "does not exist" in refused(run(TRAIN_DIT, tmp_path / "config.yaml"))
    (tmp_path / "empty.yaml").write_text("")
    assert "is required" in refused(run(TRAIN_DIT, tmp_path / "empty.yaml"))


@pytest.mark.parametrize("script", [TRAIN_DIT, "vae/train_vae.py", "vae/encode_latents.py", T2V])
def test_help_is_printed(script, run):
    status, said, _ = run(script, "--help")
    assert status == 0
    assert ("--optim.lr" in said) if "train_" in script else ("--prompt" in said or "--manifest" in said)


@pytest.mark.parametrize("config", ["dit/demo.yaml", "vae/demo.yaml"])
def test_the_demos_configurations_are_valid(config):
    from latentvid.config.parsing import load_config
    from latentvid.config.schema import DitConfig, VaeConfig
    from latentvid.models.interchange import build_vae
    from latentvid.models.transformer import VideoDiT
    from latentvid.training.task import build_model

    if config.startswith("vae"):
        cls, build = VaeConfig, build_vae
    else:
        cls, build = DitConfig, partial(build_model, VideoDiT)
    loaded = load_config(cls, ROOT / "configs" / config)
    build(loaded.model, "model")
    with pytest.raises(UserError, match="model: .*widht: did you mean width"):
        build({**loaded.model, "widht": 3}, "model")
