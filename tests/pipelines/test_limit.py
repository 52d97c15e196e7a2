"""What a pipeline was trained on: its defaults, and what is asked of it beyond."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from latentvid.data.video.reading import probe
from latentvid.data.video.writing import write_video
from latentvid.errors import UserError
from latentvid.pipelines import outputs
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.limit import TIMES, Kind, check_cost, cost, trained_area, trained_frames
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.training.stages.dit.seen import defaults_of, seen_in

RED = "a red 7 moves up"
ROOT = Path(__file__).parents[2]
QUIET = Sampling(progress=False, steps=1)


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline) -> LatentVideoPipeline:
    return load_pipeline(tiny_pipeline, "cpu")


def run(script: str, *options: str | Path) -> None:
    sys.argv = [script, *map(str, options)]
    runpy.run_path(str(ROOT / "inference" / script), run_name="__main__")


def test_what_was_trained_is_kept_and_checked(tiny_pipeline, pipeline, tmp_path):
    assert (trained_area(pipeline), trained_frames(pipeline)) == (
        32 * 32,
        5,
    )  # a folder of before tells of its defaults
    kinds = [{"frames": 5, "height": 32, "width": 48, "fps": 30.0, "count": 7}]
    pipeline.save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps(index | {"trained": kinds}))
    assert trained_area(load_pipeline(tmp_path, "cpu")) == 32 * 48
    for wrong in ([{"frames": 5}], [{**kinds[0], "frames": 0}], ["x"], [{**kinds[0], "more": 1}]):
        file.write_text(json.dumps(index | {"trained": wrong}))
        with pytest.raises(UserError, match="trained"):
            load_pipeline(tmp_path, "cpu")


def test_ten_times_the_cost_of_training_must_be_asked_for(pipeline):
    with pytest.raises(UserError, match="65 frames of 32 x 32 cost .* times a clip .*--large"):
        pipeline(RED, num_frames=65, sampling=QUIET)
    with pytest.raises(UserError, match="at most 5 frames of 32 x 32"):
        pipeline(RED, height=128, width=128, sampling=QUIET)
    assert len(pipeline(RED, num_frames=9, sampling=QUIET, output_type="uint8").frames[0]) == 9
    large = Sampling(progress=False, steps=1, large=True)
    assert len(pipeline(RED, num_frames=65, sampling=large, output_type="uint8").frames[0]) == 65


def test_cost_is_that_of_linear_layers_and_of_attention(pipeline):
    """24 D^2 a token and 4 D a pair of a query and a key, over 24 D^2; the dearest kind is by all its sides."""
    width, tokens = pipeline.transformer.config.width, 2 * 4 * 4
    assert cost(pipeline, (2, 8, 8)) == pytest.approx(tokens + tokens**2 / (6 * width))
    kinds = [{"frames": f, "height": s, "width": s} for f, s in ((1, 64), (17, 16), (5, 32))]
    stub = SimpleNamespace(
        config=SimpleNamespace(frames=5, height=32, width=32, trained=kinds),
        codec=pipeline.codec,
        transformer=pipeline.transformer,
    )
    usual = cost(pipeline, pipeline.codec.latent_grid(5, 32, 32))
    grids = [(f, 8, 8) for f in range(1, 200)]
    fit = [grid for grid in grids if cost(pipeline, grid) <= TIMES * usual]
    check_cost(stub, fit, False)
    with pytest.raises(UserError, match="at most 5 frames of 32 x 32"):
        check_cost(stub, [grids[len(fit)]], False)


def test_a_large_picture_is_taken_at_the_size_of_training(tiny_pipeline, tmp_path, capfd):
    Image.fromarray(np.zeros((90, 160, 3), np.uint8)).save(tmp_path / "p.png")
    options = ("--model", tiny_pipeline, "--image", tmp_path / "p.png", "--prompt", RED, "--steps", "1")
    run("i2v.py", *options, "--output", tmp_path / "a.mp4")
    made = probe(tmp_path / "a.mp4")
    assert made.height * made.width <= 32 * 32 and made.width > made.height and made.frames == 5
    assert "90 x 160 pixels scaled and cropped to" in capfd.readouterr().out


@pytest.mark.parametrize(("seconds", "frames"), [("1", 9), ("0.1", 1)])
def test_seconds_are_frames_that_the_model_makes(tiny_pipeline, tmp_path, seconds, frames, capfd):
    output = tmp_path / "a.webm"
    run("t2v.py", "--model", tiny_pipeline, "--prompt", RED, "--seconds", seconds, "--steps", "1", "--output", output)
    assert probe(output).frames == frames and probe(output).fps == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 300 + ".mp4", "its name has 304 bytes"),
        ("a\nb.mp4", "without control characters"),
        ("folder.mp4", "is a folder"),
        ("file.txt/a.mp4", "cannot be written"),
        ("a.avi", "must end in .mp4"),
        ("a.gif", "at most 50 frames a second"),
    ],
)
def test_names_that_cannot_be_written_are_refused_before_the_work(tmp_path, name, message):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(UserError, match=message):
        outputs.check_output(tmp_path / name, 60.0)


@pytest.mark.parametrize("name", ["a:b.mp4", "ä" * 120 + ".mp4", "x" * 251 + ".mp4", "-.mp4", "a b'\".mp4", "con.mp4"])
def test_names_that_can_be_written_are(tmp_path, name):
    outputs.check_output(tmp_path / name, 8.0)
    outputs.write(tmp_path / name, torch.zeros(3, 16, 16, 3, dtype=torch.uint8), 8.0, "said")
    assert [p.name for p in tmp_path.iterdir()] == [name] and probe(tmp_path / name).frames == 3


def test_a_clip_that_cannot_be_written_is_kept_elsewhere(tmp_path, monkeypatch):
    def full(path, *more):
        if Path(path).name == "a.gif":
            raise OSError(28, "No space left on device")
        return write_video(path, *more)

    monkeypatch.setattr(outputs, "write_video", full)
    clip = torch.zeros(3, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"a.gif cannot be written .*No space.* the clip is in (.*\.mp4)") as error:
        outputs.write(tmp_path / "a.gif", clip, 8.0, "said")
    assert probe(str(error.value).rpartition(" ")[2]).frames == 3


def test_pictures_have_no_rate_in_what_a_model_was_trained_on():
    caches = SimpleNamespace(grids=[(3, 4, 4), (1, 4, 4)], rate=[24.0, 0.0].__getitem__)
    grid = lambda f, h, w: ((f + 3) // 4, h // 8, w // 8)  # noqa: E731
    vae = SimpleNamespace(temporal_stride=4, spatial_stride=8, latent_grid=grid)
    seen = seen_in(caches, vae)
    assert seen == [
        {"frames": 9, "height": 32, "width": 32, "fps": 24.0, "count": 1},
        {"frames": 1, "height": 32, "width": 32, "count": 1},
    ]
    assert [Kind.of(kind).as_json() for kind in seen] == seen and defaults_of(seen)["fps"] == 24.0
