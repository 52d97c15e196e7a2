"""inference/extend.py and inference/long.py: what they write, say and refuse."""

import errno
import itertools
import shutil
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from scripting import refused

from latentvid.data.video import writing
from latentvid.data.video.reading import probe, read_frames
from latentvid.data.video.writing import write_video
from latentvid.errors import UserError
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline

QUICK = ("--steps", 1, "--guidance", 1, "--device", "cpu", "--prompt", "a red 7")


@pytest.fixture(scope="module")
def model(tiny_pipeline, tmp_path_factory) -> Path:
    """The tiny pipeline, as if trained with given frames, and of windows that hold a context of 2 latent frames."""
    pipeline = load_pipeline(tiny_pipeline, "cpu")
    pipeline.register_to_config(frames=9, given=("plain", "prefix", "ends"))
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """20 frames of 32 x 40 at 12 fps: longer than the chunks in which it is read."""
    soft = torch.nn.functional.interpolate(torch.rand(1, 3, 20, 4, 5), (20, 32, 40), mode="trilinear")[0]
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, (soft * 255).to(torch.uint8).movedim(0, -1), 12)
    return path


def add_audio(path: Path, output: Path) -> None:
    """The same video with two seconds of a tone."""
    with av.open(path) as source, av.open(output, "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        audio = target.add_stream("aac", rate=16000, layout="mono")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux(packet)
        samples = (8000 * np.sin(np.arange(32000) / 9)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        target.mux(audio.encode(frame))
        target.mux(audio.encode(None))


def test_extend_keeps_the_clip_its_rate_and_size_and_goes_on(run, model, clip, tmp_path):
    """A size that the model does not make, and larger than those of its training; and the range of luma."""
    whole = read_frames(clip)[:, :31, :39].contiguous()
    with writing.clip_writer(tmp_path / "odd.mp4", 31, 39, 12, full_range=True) as append:
        append(whole)
    output = tmp_path / "new folder" / "long.mp4"
    status, said, _ = run(
        *("inference/extend.py", *QUICK, "--model", model, "--clip", tmp_path / "odd.mp4", "--seconds", 0.5),
        *("--output", output),
    )
    assert status == 0 and said.splitlines()[-1] == f"{output}: 26 frames, 2.2 s"
    assert "31 x 39 pixels, made in" in said and "scaled back" in said
    info = probe(output)
    assert (info.frames, info.fps, info.height, info.width) == (26, 12.0, 31, 39) and writing.has_full_range(output)
    old, new = read_frames(tmp_path / "odd.mp4"), read_frames(output)
    assert (new[:20].float() - old.float()).abs().mean() < 2  # written once more
    assert (new[20:].float() - old[-1:].float()).abs().mean() > 2
    assert [path.name for path in output.parent.iterdir()] == ["long.mp4"]


def test_extend_copies_the_audio_as_far_as_it_goes(run, model, clip, tmp_path):
    add_audio(clip, tmp_path / "loud.mp4")
    base = (*QUICK, "--model", model, "--clip", tmp_path / "loud.mp4", "--frames", 1)
    status, said, _ = run("inference/extend.py", *base, "--output", tmp_path / "out.mp4")
    assert status == 0 and "(with the input's audio, aac)" in said
    with av.open(tmp_path / "out.mp4") as out:
        seconds = sum(packet.duration or 0 for packet in out.demux(audio=0)) * out.streams.audio[0].time_base
    assert 1.7 < seconds < 1.9  # 21 frames at 12 fps
    status, said, _ = run("inference/extend.py", *base, "--output", tmp_path / "slow.mp4", "--fps", 6)
    with av.open(tmp_path / "slow.mp4") as out:
        assert status == 0 and not out.streams.audio and "audio" in said


def test_extend_scales_what_the_model_cannot_make_and_says_so(run, model, clip, tmp_path):
    size = ("--height", 16, "--width", 24, "--window", 13, "--context", 1)
    status, said, _ = run(
        "inference/extend.py",
        *QUICK,
        "--model",
        model,
        "--clip",
        clip,
        "--frames",
        3,
        *size,
        "--output",
        tmp_path / "a.mp4",
    )
    assert status == 0 and "32 x 40 pixels scaled and cropped to 16 x 24" in said
    info = probe(tmp_path / "a.mp4")
    assert (info.frames, info.height, info.width) == (23, 16, 24)


@pytest.mark.parametrize(
    ("order", "more"),
    [("rollout", ["--window", "9", "--context", "5"]), ("nuwa-xl", ["--local-prompt", "a 3", "--local-prompt", "a 4"])],
)
def test_long_makes_any_length_in_both_orders(run, model, tmp_path, order, more):
    base = (*QUICK, "--model", model, "--order", order, "--height", 16, "--width", 24, *more)
    status, said, _ = run("inference/long.py", *base, "--frames", 11, "--output", tmp_path / "long.mp4")
    assert status == 0 and said.splitlines() == [f"{tmp_path / 'long.mp4'}: 11 frames, 1.4 s"]
    info = probe(tmp_path / "long.mp4")
    assert (info.frames, info.fps, info.height, info.width) == (11, 8.0, 16, 24)


def test_long_counts_seconds_at_the_files_rate(run, model, tmp_path):
    base = (*QUICK, "--model", model, "--height", 16, "--width", 16, "--output", tmp_path / "long.mp4")
    assert run("inference/long.py", *base, "--seconds", 0.5, "--fps", 24)[0] == 0
    assert (probe(tmp_path / "long.mp4").frames, probe(tmp_path / "long.mp4").fps) == (12, 24.0)


@pytest.mark.parametrize("script", ["inference/extend.py", "inference/long.py"])
@pytest.mark.parametrize(
    ("error", "status", "said", "comma"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted", ":"),
        (UserError("no room on the GPU"), 2, "error: no room on the GPU", ";"),
    ],
)
def test_a_run_that_is_cut_short_keeps_what_was_made(
    run, model, clip, tmp_path, script, error, status, said, comma, monkeypatch
):
    """Beside the output, which is left as it was, under a name that is free; nothing where nothing was made."""
    sample, calls = LatentVideoPipeline.sample, []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) > whole:
            raise error
        return sample(self, *arguments)

    monkeypatch.setattr(LatentVideoPipeline, "sample", failing)
    extends = script == "inference/extend.py"
    words = (script, *QUICK, "--model", model, *(("--clip", clip) if extends else ()), "--frames", 40)
    output, names = tmp_path / "out.mp4", ["out.mp4"]
    output.write_text("the file that was there")
    for whole, name in ((0, None), (1, "out.partial.mp4"), (2, "out.partial-1.mp4")):
        calls.clear()
        found, _, text = run(*words, "--output", output)
        names += [name] if name else []
        word = f"{comma} what was made so far is in {tmp_path / name}" if name else ""
        assert found == status and text.splitlines()[-1] == said + word and "Traceback" not in text
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
        if name:
            made = 20 + 4 * whole if extends else 9 + 4 * (whole - 1)
            assert probe(tmp_path / name).frames == len(read_frames(tmp_path / name)) == made
    assert output.read_text() == "the file that was there"


def test_a_disk_that_fills_up_leaves_room_for_what_was_made(run, model, tmp_path, monkeypatch):
    usage, free = shutil.disk_usage(tmp_path), iter([2**40] * 20)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage._replace(free=next(free, 2**20)))
    output = tmp_path / "out.mp4"
    said = refused(run("inference/long.py", *QUICK, "--model", model, "--frames", 40, "--output", output))
    kept = tmp_path / "out.partial.mp4"
    assert (
        said
        == f"error: {output}: No space left on device: make room, and start again; what was made so far is in {kept}"
    )
    assert [path.name for path in tmp_path.iterdir()] == [kept.name] and len(read_frames(kept)) == 20


def test_a_file_that_the_disk_broke_is_not_kept(run, model, tmp_path, monkeypatch):
    opened = writing._opened

    @contextmanager
    def breaking(*arguments):
        with opened(*arguments) as write:
            taken = itertools.count(1)

            def once(pixels):
                write(pixels)
                if next(taken) == 12:
                    raise OSError(errno.EIO, "Input/output error", "out.mp4")

            yield once

    monkeypatch.setattr(writing, "_opened", breaking)
    said = refused(run("inference/long.py", *QUICK, "--model", model, "--frames", 40, "--output", tmp_path / "out.mp4"))
    assert said == "error: out.mp4: Input/output error: mend the disk" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("inference/extend.py", ["--frames", "0"], "--frames 0: must be a whole number"),
        ("inference/extend.py", ["--seconds", "0"], "--seconds 0: must be a finite number"),
        ("inference/extend.py", ["--seconds", "nan"], "--seconds nan"),
        (
            "inference/extend.py",
            ["--frames", "4", "--output", "x.gif"],
            "the name must end in .mp4 or .webm",
        ),
        ("inference/extend.py", ["--frames", "4", "--fps", "0"], "--fps 0: must be a finite number"),
        (
            "inference/extend.py",
            ["--frames", "4", "--context", "9"],
            "a window of 9 frames must be longer than its context of 9",
        ),
        ("inference/extend.py", ["--frames", "4", "--window", "-3"], "--window -3: must be a whole number"),
        ("inference/extend.py", ["--frames", "4", "--width", "20"], "this model makes multiples of 8"),
        ("inference/extend.py", ["--frames", "4", "--clip", "nowhere.mp4"], "nowhere.mp4: cannot be found"),
        (
            "inference/extend.py",
            ["--frames", "4", "--clip", "one.png"],
            "one.png has 1 frame, and 5 are needed to go on from",
        ),
        ("inference/extend.py", ["--frames", "4", "--steps", "0"], "--steps 0: must be a whole number"),
        ("inference/long.py", ["--seconds", "0.01"], "--seconds 0.01: at 8 fps this is less than a frame"),
        ("inference/long.py", ["--frames", "20", "--height", "30"], "30 x 32 pixels: this model makes multiples of 8"),
        ("inference/long.py", ["--frames", "20", "--tokens-per-pack", "9"], "--tokens-per-pack is for --order nuwa-xl"),
        (
            "inference/long.py",
            ["--frames", "20", "--order", "nuwa-xl", "--context", "5"],
            "--context is for --order rollout",
        ),
        (
            "inference/long.py",
            ["--frames", "20", "--order", "nuwa-xl", "--local-prompt", "a 3"],
            "1 local prompt for 4 segments",
        ),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(run, model, clip, tmp_path, monkeypatch, script, options, message):
    monkeypatch.chdir(tmp_path)
    write_video("one.png", read_frames(clip, 0, 1), 8)
    source = () if script == "inference/long.py" or "--clip" in options else ("--clip", clip)
    assert message in refused(run(script, *QUICK, "--model", model, *source, *options))
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def test_extend_without_given_frames_says_how_it_conditions(run, tiny_pipeline, clip, tmp_path):
    base = (*QUICK, "--model", tiny_pipeline, "--clip", clip, "--frames", 1, "--window", 9)
    status, said, _ = run("inference/extend.py", *base, "--output", tmp_path / "a.mp4")
    assert status == 0 and "trained without given frames" in said
    assert "trained without given frames" in refused(run("inference/extend.py", *base, "--condition", "levels"))
