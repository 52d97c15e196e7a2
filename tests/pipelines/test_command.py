"""What the options of the inference scripts mean: sampling, lengths, sizes and windows; no network is run."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from latentvid.data.video.reading import VideoInfo
from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.pipelines import command, inputs
from latentvid.pipelines.arguments import parser_of
from latentvid.pipelines.sampling import Sampling

CONFIG = SimpleNamespace(guidance=3.0, frames=5, height=32, width=32, trained=None, fps=8.0, given=["plain", "first"])
CODEC = SimpleNamespace(spatial_stride=4, temporal_stride=4)
PIPELINE = SimpleNamespace(
    config=CONFIG,
    codec=CODEC,
    transformer=SimpleNamespace(patch=(1, 2, 2), channels=0),
    told=False,
    guidance=lambda: Guidance(scale=3.0),
    device="cpu",
    latent_grid=lambda *_: None,
    check_sampling=lambda sampling: None,
)


def test_options_of_sampling_arrive_where_they_mean_something(capsys):
    parser, plain = parser_of("", known=True), ["--mixed-precision", "no"]
    found = command.sampling_of(parser.parse_args(plain), PIPELINE)
    assert found == Sampling(precision=torch.float32)
    options = "--steps 7 --solver heun --guidance 2 --guidance-rescale 0.5 --guidance-interval 0.1 0.8 --zero-init 1"
    more = "--condition replacement --reconstruction-weight 4 --large"
    found = command.sampling_of(parser.parse_args([*plain, *options.split(), *more.split()]), PIPELINE)
    guidance = Guidance(scale=2.0, rescale=0.5, interval=(0.1, 0.8), zero_init=1)
    assert found == Sampling(
        steps=7,
        solver="heun",
        guidance=guidance,
        condition="replacement",
        reconstruction_weight=4.0,
        precision=torch.float32,
        large=True,
    )
    assert capsys.readouterr().err.count("computing in fp32") == 2


@pytest.mark.parametrize(("frames", "seconds", "fps", "asked"), [(7, None, 8, 7), (None, 1.0, 8, 8), (None, 0.1, 8, 1)])
def test_seconds_are_frames_of_the_rate(frames, seconds, fps, asked):
    assert command.asked_frames(frames, seconds, fps) == asked


def test_less_than_half_a_frame_is_none():
    with pytest.raises(UserError, match="--seconds 0.0625: at 8 fps this is less than a frame"):
        command.asked_frames(None, 0.0625, 8)


@pytest.mark.parametrize(("seconds", "made"), [(0.6, 5), (0.8, 5), (1.0, 9), (1.125, 9), (0.1, 1)])
def test_seconds_become_the_nearest_length_that_the_model_makes(seconds, made, capsys):
    assert command.legal_frames(PIPELINE, None, seconds, 8.0) == made
    said = capsys.readouterr().out
    assert (f"the model makes {made} frames" in said) == (command.asked_frames(None, seconds, 8.0) != made)
    assert command.legal_frames(PIPELINE, 7, None, 8.0) == 7 and command.legal_frames(PIPELINE, None, None, 8.0) is None


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"height": 48}, (48, 88)),
        ({"width": 48}, (24, 48)),
        ({"height": 2, "width": None}, (2, 8)),
        ({"height": 40, "width": 40}, (40, 40)),
        ({}, (88, 160)),
        ({"large": False}, (24, 40)),
    ],
)
def test_one_side_follows_the_other_by_the_clips_aspect(given, size, capsys, monkeypatch):
    monkeypatch.setattr(inputs, "check_cost", lambda *_: None)
    info = VideoInfo(frames=9, fps=8.0, height=90, width=160)
    assert inputs.footage_size(Path("a.mp4"), info, PIPELINE, **{"large": True} | given) == size
    beyond = ", as the model was trained" if given == {"large": False} else ""
    said = capsys.readouterr().out
    assert said == f"a.mp4: 90 x 160 pixels scaled and cropped to {size[0]} x {size[1]}{beyond}\n"


def test_what_is_beyond_training_is_noted(capsys):
    command.note_size(PIPELINE, 5, 32, 32)
    command.note_size(PIPELINE, 1)
    assert not capsys.readouterr().err
    command.note_size(PIPELINE, 6, 40, 32)
    said = capsys.readouterr().err
    assert "less than 6 frames (at most 5) and 40 x 32 pixels (at most 1,024)" in said


def test_frames_that_training_never_gave_are_noted(capsys):
    config = SimpleNamespace(given=["plain", "first"], given_shares={"plain": 3, "first": 1})
    pipeline = SimpleNamespace(config=config, transformer=PIPELINE.transformer, told=False)
    command.note_condition(pipeline, Sampling(), "first")
    assert capsys.readouterr() == ("", "")
    command.note_condition(pipeline, Sampling(), "ends", "random")
    said = capsys.readouterr().err
    assert "trained with first 25%, plain 75% of given frames, none of which is ends or random" in said
    pipeline.config.given, pipeline.config.given_shares = ["plain"], None
    command.note_condition(pipeline, Sampling(condition="replacement"), "ends")
    assert capsys.readouterr() == ("", "")
    command.note_condition(pipeline, Sampling(), "ends")
    assert capsys.readouterr().out.startswith("this model was trained without given frames: what is given guides it")
