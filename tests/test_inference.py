"""The scripts that start from pictures and clips: what they write, say and refuse, on tiny saved pipelines."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from latentvid.data.video.reading import probe, read_frames
from latentvid.data.video.writing import write_video


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """clip.mp4 (6 frames of 16 x 24, 12 fps, with sound), pictures and masks for it."""
    folder = tmp_path_factory.mktemp("inputs")
    ramp = torch.arange(24, dtype=torch.uint8)[None, None, :, None] * 5
    clip = (ramp + 20 * torch.arange(6, dtype=torch.uint8)[:, None, None, None]).expand(6, 16, 24, 3).contiguous()
    write_video(folder / "silent.mp4", clip, 12)
    add_sound(folder / "silent.mp4", folder / "clip.mp4")
    write_video(folder / "odd.mp4", clip[:, :15, :22].contiguous(), 12)
    write_video(folder / "one.mp4", clip[:1], 12)
    write_video(folder / "a.png", clip[:1], 12)
    write_video(folder / "b.png", clip[3:4], 12)
    write_video(folder / "big.png", clip[:1].repeat_interleave(2, 1), 12)
    mask = torch.zeros(6, 16, 24, 3, dtype=torch.uint8)
    mask[:, 4:12, 8:16] = 255
    write_video(folder / "mask.png", mask[:1], 12)
    write_video(folder / "mask.mp4", mask, 12)
    write_video(folder / "mask5.mp4", mask[:5], 12)
    write_video(folder / "mask3.mp4", mask[:3], 12)
    write_video(folder / "black.png", 0 * mask[:1], 12)
    deep_video(folder / "deep.mp4", clip)
    alpha = np.full((16, 24, 1), 255, np.uint8)
    Image.fromarray(np.concatenate([clip[0].numpy(), alpha], -1)).save(folder / "opaque.png")
    Image.fromarray(np.concatenate([clip[0].numpy(), alpha // 2], -1)).save(folder / "alpha.png")
    (folder / "text.png").write_text("no picture")
    return folder


def add_sound(source: Path, to: Path) -> None:
    with av.open(str(source)) as video, av.open(str(to), "w") as output:
        stream, sound = output.add_stream_from_template(video.streams.video[0]), output.add_stream("aac", rate=16000)
        for packet in video.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
        for i in range(7):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))


def deep_video(path: Path, frames: torch.Tensor) -> None:
    """Of 10 bits a channel."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=12)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p10le"
        for pixels in frames.numpy():
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))


def has_sound(path: Path) -> bool:
    with av.open(str(path)) as container:
        return bool(container.streams.audio)


@pytest.fixture
def run(run, monkeypatch, files, given_pipeline, tmp_path):
    """`run("i2v", "--image", "a.png", ...)` in the folder of the inputs; (status, stdout, stderr)."""

    def run_there(script: str, *arguments: object, model: Path = given_pipeline) -> tuple[int, str, str]:
        monkeypatch.chdir(files)
        words = ["--model", model, "--steps", 2, "--device", "cpu", *arguments]
        if "--output" not in arguments:
            words += ["--output", tmp_path / "out.mp4"]
        return run(f"inference/{script}.py", *words)

    return run_there


def shape(path: Path) -> tuple[int, int, int, float]:
    info = probe(path)
    return info.frames, info.height, info.width, info.fps


INPAINT = ("--clip", "clip.mp4", "--prompt", "a red 7", "--mask")
OUTPAINT = ("inpaint", "--clip", "clip.mp4", "--prompt", "a red 7", "--outpaint")
EDIT = ("--clip", "clip.mp4", "--prompt", "a red 7")
STYLE = ("--clip", "clip.mp4", "--style", "b.png")
FLOW = ("--method", "flow", "--source", "a blue 3")
TWO = ("--first", "a.png", "--last", "b.png")


def test_i2v_begins_with_the_picture_in_its_size(run, tmp_path):
    status, said, _ = run("i2v", "--image", "a.png", "--prompt", "a red 7", "--frames", 9)
    assert status == 0 and said.strip() == f"{tmp_path / 'out.mp4'}: a red 7"
    assert shape(tmp_path / "out.mp4") == (9, 16, 24, 8.0)
    both = ("--image", "a.png", "--image", "big.png", "--prompt", "a red 7", "--prompt", "a blue 3", "--fps", 10)
    assert run("i2v", *both, "--output", tmp_path / "o.gif", "--guidance-interval", 0.2, 0.9)[0] == 0
    assert [shape(tmp_path / f"o-{i}.gif") for i in (0, 1)] == [(5, 16, 24, 10.0), (5, 32, 24, 10.0)]


def test_pictures_of_any_kind(run, tmp_path):
    for image, note in (("alpha.png", "transparent parts are taken as black"), ("opaque.png", "")):
        status, said, _ = run("i2v", "--image", image, "--prompt", "a red 7", "--output", tmp_path / "a.png")
        assert status == 0 and note in said and ("transparent" in said) == bool(note)
    status, said, _ = run("i2v", "--image", "big.png", "--prompt", "a red 7", "--height", 24)
    assert status == 0 and "32 x 24 pixels scaled and cropped to 24 x 16" in said
    assert shape(tmp_path / "out.mp4")[1:3] == (24, 16)


def test_interpolate_between_two_pictures(run, tmp_path):
    status, said, _ = run("interpolate", *TWO, "--between", 3, "--prompt", "a red 7")
    assert status == 0 and "3 frames between two: the nearest in time of the 4 that the model makes" in said
    assert shape(tmp_path / "out.mp4") == (5, 16, 24, 8.0)
    status, said, _ = run("interpolate", *TWO)
    assert status == 0 and "nearest" not in said and shape(tmp_path / "out.mp4")[0] == 6


def test_interpolate_a_clip_keeps_its_duration_size_and_sound(run, tmp_path):
    assert run("interpolate", "--clip", "clip.mp4", "--factor", 2)[0] == 0
    assert shape(tmp_path / "out.mp4") == (11, 16, 24, 24.0) and has_sound(tmp_path / "out.mp4")
    status, said, _ = run("interpolate", "--clip", "clip.mp4", "--factor", 2, "--frames", 4, "--fps", 12)
    assert status == 0 and "7 frames, 0.6 s" in said and "without its audio, aac: another speed" in said
    assert shape(tmp_path / "out.mp4") == (7, 16, 24, 12.0) and not has_sound(tmp_path / "out.mp4")


@pytest.mark.parametrize("mask", ["mask.png", "mask.mp4"])
def test_inpaint_changes_what_is_white(mask, run, files, tmp_path):
    status, said, _ = run("inpaint", *INPAINT, mask)
    assert status == 0 and "17% painted anew, 6 frames, 0.5 s (with the input's audio, aac)" in said
    assert shape(tmp_path / "out.mp4") == (6, 16, 24, 12.0) and has_sound(tmp_path / "out.mp4")
    change = (read_frames(tmp_path / "out.mp4").float() - read_frames(files / "clip.mp4").float()).abs().mean(-1)
    assert change[:, 5:11, 9:15].mean() > 20 and change[:, :2].mean() < 4 and change[:, -2:].mean() < 4  # compression


def test_inpaint_removes_and_paints_beyond_the_edges(run, files, tmp_path):
    words = ("inpaint", "--clip", "a.png", "--output", tmp_path / "out.png")
    assert run(*words, "--mask", "mask.png", "--remove", "a red 7")[0] == 0
    new, old = read_frames(tmp_path / "out.png")[0], read_frames(files / "a.png")[0]
    changed = (new != old).any(-1).nonzero()
    assert changed.amin(0).tolist() == [0, 4] and changed.amax(0).tolist() == [15, 19]  # wider by 4 than the mask
    assert run(*words, "--outpaint", 0, 3, 8, 0, "--prompt", "a red 7")[0] == 0
    wide = read_frames(tmp_path / "out.png")[0]
    assert wide.shape == (19, 32, 3) and torch.equal(wide[:16, 8:], old)


@pytest.mark.parametrize("limit", [("--mask", "mask.png"), ("--mask-words", "7"), ("--mask", "mask.png", "--grow", 2)])
def test_an_edit_within_a_mask_leaves_the_rest(limit, run, files, tmp_path):
    words = ("--clip", "a.png", "--prompt", "a red 7", "--method", "sdedit")
    assert run("edit", *words, *limit, "--output", tmp_path / "out.png")[0] == 0
    changed = (read_frames(tmp_path / "out.png") != read_frames(files / "a.png")).any(-1)[0]
    assert 0 < changed.float().mean() < 1
    if "--mask" in limit:
        grow = 2 * ("--grow" in limit)
        changed[4 - grow : 12 + grow, 8 - grow : 16 + grow] = False
        assert not changed.any()


def test_inpaint_of_a_picture_and_of_a_clips_beginning(run, files, tmp_path):
    picture = ("--clip", "a.png", "--mask", "mask.png", "--prompt", "a red 7", "--output", tmp_path / "out.png")
    assert run("inpaint", *picture)[0] == 0
    new, old = read_frames(tmp_path / "out.png")[0], read_frames(files / "a.png")[0]
    assert torch.equal(new[:4], old[:4]) and not torch.equal(new[4:12], old[4:12])
    status, said, _ = run("inpaint", *INPAINT, "mask3.mp4", "--frames", 3)
    assert status == 0 and shape(tmp_path / "out.mp4")[0] == 3  # a mask of what is made is as good as one of the file
    status, said, _ = run("inpaint", *INPAINT, "mask.mp4", "--frames", 3, "--fps", 6)
    assert status == 0 and shape(tmp_path / "out.mp4") == (3, 16, 24, 6.0)
    assert "without its audio, aac" in said and not has_sound(tmp_path / "out.mp4")


def test_sizes_that_the_model_does_not_make_are_kept_unless_others_are_asked_for(run, tmp_path):
    words = ("edit", "--clip", "odd.mp4", "--prompt", "a red 7", "--method", "sdedit")
    status, said, _ = run(*words)
    assert status == 0 and "scaled" not in said and shape(tmp_path / "out.mp4") == (6, 15, 22, 12.0)
    status, said, _ = run(*words, "--height", 8, "--width", 16)
    assert status == 0 and "odd.mp4: 15 x 22 pixels scaled and cropped to 8 x 16" in said
    assert shape(tmp_path / "out.mp4") == (6, 8, 16, 12.0)


@pytest.mark.parametrize(
    "method",
    [
        ("--source", "a blue 3", "--strength", 0.5),
        ("--method", "sdedit", "--strength", 0.5),
        ("--method", "flow", "--source", "a blue 3", "--n-max", 2, "--n-min", 1, "--n-avg", 2),
    ],
)
def test_edit_keeps_length_rate_and_size(method, run, tmp_path):
    assert run("edit", *EDIT, *method)[0] == 0
    assert shape(tmp_path / "out.mp4") == (6, 16, 24, 12.0) and has_sound(tmp_path / "out.mp4")


def test_edit_by_a_model_of_images_keeps_length_rate_size_and_sound(run, image_pipeline, tiny_pipeline, tmp_path):
    words = (*EDIT, "--source", "a blue 3", "--method", "tokenflow")
    assert run("edit", *words, "--keyframe-every", 2, model=image_pipeline)[0] == 0
    assert shape(tmp_path / "out.mp4") == (6, 16, 24, 12.0) and has_sound(tmp_path / "out.mp4")
    status, _, said = run("edit", *words, model=tiny_pipeline)
    assert status == 2 and "trained on clips alone (up to 5 frames)" in said


def test_a_clip_in_the_look_of_a_picture_keeps_length_rate_size_and_sound(run, tmp_path):
    status, said, _ = run("style", *STYLE, "--prompt", "a red 7", "--strength", 0.5, "--style-scale", 1.5)
    assert status == 0 and "in the look of b.png, by shared attention" in said
    assert shape(tmp_path / "out.mp4") == (6, 16, 24, 12.0) and has_sound(tmp_path / "out.mp4")


@pytest.mark.parametrize("words", [("edit", "--method", "sdedit", "--prompt", "a"), ("interpolate", "--factor", 4)])
def test_a_clip_of_more_than_8_bits_is_said_to_be_written_with_8(words, run):
    told = "deep.mp4: 10 bits a channel, read and written with 8"
    status, said, errors = run(words[0], "--clip", "deep.mp4", "--frames", 2, *words[1:])
    assert status == 0 and told in said.splitlines(), errors
    status, said, errors = run(words[0], "--clip", "silent.mp4", "--frames", 2, *words[1:])
    assert status == 0 and "bits" not in said, errors


def test_models_without_given_frames_say_how_they_do_it(run, tiny_pipeline, tmp_path):
    words = ("--image", "a.png", "--prompt", "a red 7")
    status, said, _ = run("i2v", *words, model=tiny_pipeline)
    assert status == 0 and "trained without given frames" in said
    status, _, said = run("i2v", *words, "--condition", "levels", model=tiny_pipeline)
    assert status == 2 and "trained without given frames" in said
    assert "without given" not in run("i2v", *words, "--condition", "replacement", model=tiny_pipeline)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inpaint", *INPAINT, "big.png"), "mask big.png is 32 x 24 pixels, clip.mp4 16 x 24"),
        (("inpaint", *INPAINT, "mask5.mp4"), "mask mask5.mp4 has 5 frames, clip.mp4 6"),
        (("inpaint", *INPAINT, "black.png"), "black all over"),
        (("edit", *EDIT, "--method", "sdedit", "--mask-words", "8"), "'8' is no word of 'a red 7'"),
        (("edit", *EDIT, "--method", "sdedit", "--grow", 2), "--grow and --outside are of a mask"),
        (("inpaint", "--clip", "a.png", "--prompt", "a red 7"), "give --mask, or --outpaint"),
        ((*OUTPAINT, 0, 0, 0, 0), "pixels beyond one of its edges: give a number above 0"),
        ((*OUTPAINT, 0, 8, 0, 0, "--width", 16), "outpainting wants the clip as it is: leave its height and width out"),
        (("inpaint", *INPAINT, "alpha.png"), "mask alpha.png is transparent in parts"),
        (("inpaint", *INPAINT, "none.png"), "none.png"),
        (("inpaint", *INPAINT, "mask5.mp4", "--frames", 3), "has 5 frames, clip.mp4 6 (of which 3 are asked for)"),
        (("inpaint", *INPAINT, "mask.png", "--frames", 0), "--frames 0"),
        (("inpaint", *INPAINT, "mask.png", "--width", 20), "multiples of 8"),
        (("interpolate", "--clip", "one.mp4"), "one.mp4 has one frame"),
        (("interpolate", "--clip", "clip.mp4", "--between", 3), "--between is of --first and --last"),
        (("interpolate", "--clip", "clip.mp4", "--factor", 8, "--output", "x.gif"), "--fps 96: a gif plays at most 50"),
        (("interpolate", *TWO, "--factor", 3), "--factor is of --clip"),
        (("edit", *EDIT, "--method", "sdedit", "--source", "a"), "--source is of the other methods"),
        (("edit", *EDIT, "--method", "flow"), "--method flow needs --source"),
        (("edit", *EDIT, "--method", "sdedit", "--n-max", 3), "--n-max is of --method flow"),
        (("edit", *EDIT, "--method", "sdedit", "--keyframe-every", 3), "--keyframe-every is of --method tokenflow"),
        (("edit", *EDIT, "--method", "tokenflow", "--keyframe-every", 0), "--keyframe-every 0: must be a whole number"),
        (("edit", *EDIT, *FLOW, "--strength", 0.5), "--strength is of the other methods: give --n-max"),
        (("edit", *EDIT, *FLOW, "--n-max", 99), "n_max 99 of 2 steps"),
        (("edit", *EDIT, *FLOW, "--n-avg", 0), "--n-avg 0: must be a whole number"),
        (
            ("style", "--clip", "clip.mp4", "--style", "silent.mp4"),
            "silent.mp4 has 6 frames where one picture is wanted",
        ),
        (("style", *STYLE, "--solver", "heun"), "solver 'euler', not 'heun'"),
        (("style", *STYLE, "--strength", 2), "--strength 2: must be a finite number"),
        (("t2v", "--prompt", "a", "--tokens-per-pack", 99), "--tokens-per-pack is of --prompts"),
        (("interpolate", "--clip", "clip.mp4", "--factor", 1), "6 frames at 1 times"),
        (("interpolate", *TWO, "--between", 0), "--between 0: must be a whole number"),
        (("interpolate", "--first", "a.png", "--last", "big.png"), "first picture is 16 x 24 pixels, the last 32 x 24"),
        (("i2v", "--image", "clip.mp4", "--prompt", "a red 7"), "clip.mp4 has 6 frames where one picture is wanted"),
        (("i2v", "--image", "none.png", "--prompt", "a red 7"), "none.png"),
        (("i2v", "--image", "text.png", "--prompt", "a red 7"), "text.png"),
        (("i2v", "--image", "a.png", "--prompt", "a", "--prompt", "b"), "1 --image and 2 --prompt"),
        (("i2v", "--image", "a.png", "--prompt", "a", "--frames", 4), "4 frames: this VAE takes 1 + 4k"),
        (("i2v", "--image", "a.png", "--prompt", "a", "--guidance-interval", 0.9, 0.2), "guidance interval 0.9 to 0.2"),
        (("edit", *EDIT), "--method inversion needs --source"),
        (("edit", *EDIT, "--method", "sdedit", "--strength", 2), "--strength 2: must be a finite number"),
        (("edit", *EDIT, "--method", "sdedit", "--fps", 0), "--fps 0: must be a finite number"),
        (("edit", *EDIT, "--method", "sdedit", "--output", "x.avi"), "must end in .mp4, .webm, .gif, .png"),
    ],
)
def test_bad_input_is_one_message(words, message, run, tmp_path):
    status, _, said = run(*words)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and message in errors[0] and "Traceback" not in said, said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [(), ("--first", "a.png"), ("--clip", "clip.mp4", *TWO)])
def test_interpolate_wants_two_pictures_or_a_clip(words, run):
    status, _, said = run("interpolate", *words)
    assert status == 2 and "give --first and --last, or --clip" in said


@pytest.mark.parametrize("script", ["i2v", "interpolate", "inpaint", "edit", "style"])
def test_help_is_printed(script, run):
    status, said, _ = run(script, "--help")
    assert status == 0 and "--negative-prompt" in said and ("--condition" in said) == (script not in ("edit", "style"))
