"""Windows and tiles, and super-resolution through them: exact where nothing lies over each other, flat in memory."""

import json
import re
import shutil

import pytest
import torch
from scripting import refused

from latentvid.data.degradations import stretched
from latentvid.data.video.reading import probe, read_frames
from latentvid.data.video.writing import write_video
from latentvid.errors import UserError
from latentvid.pipelines.cascade import Cascade, Stage, times_of
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.pipelines.tasks import raise_rate
from latentvid.pipelines.tiling import blended, joined, starts, stream, windows_of
from latentvid.pipelines.upscale import Plan, SuperResolution, upscaled
from latentvid.rng import derived_seed, generator

RED = "a red 7 moves up"
LARGER = {"low": {"place": "aligned", "degrade": [{"kind": "resize", "amount": [2, 2]}], "noise": [0.0, 0.5]}}
MORE = {"few": {"place": "aligned", "degrade": [{"kind": "frames", "amount": [2, 2]}]}}
QUICK = [Sampling(steps=1, progress=False)]


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_pipeline):
    """`tiny_pipeline` as it was trained to make clips twice as large, or with twice the frames a second."""
    found = {}
    for name, roles, frames in (("larger", LARGER, 5), ("more", MORE, 9)):
        folder = shutil.copytree(tiny_pipeline, tmp_path_factory.mktemp(name) / "pipeline")
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(
            json.dumps(index | {"references": roles, "frames": frames, "steps": 1})
        )
        found[name] = folder
    return found


@pytest.fixture(scope="module")
def larger(folders):
    return SuperResolution.of(load_pipeline(folders["larger"], "cpu"))


@pytest.fixture(scope="module")
def more(folders):
    return SuperResolution.of(load_pipeline(folders["more"], "cpu"))


# --- where windows and tiles lie, and how they are joined -------------------------------------------------------------


def test_runs_cover_the_whole_with_what_they_have_in_common():
    for length in range(1, 30):
        for size in range(1, 8):
            for overlap in range(size):
                found = starts(length, size, overlap)
                assert found[0] == 0 and found[-1] == max(0, length - size)
                assert all(0 < b - a <= size - overlap for a, b in zip(found, found[1:], strict=False))
                assert len(found) < 2 or (len(found) - 2) * (size - overlap) + size < length  # none is to spare


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_equal_pieces_stay_what_they_are_and_weights_add_up_to_one(dim):
    whole = noise(9, 9, 9, 3).float()
    for size, overlap in ((9, 3), (5, 2), (4, 3), (3, 0)):
        firsts = starts(9, size, overlap)
        pieces = [whole.narrow(dim, first, min(size, 9)) for first in firsts]
        assert torch.equal(joined(pieces, firsts, dim), whole)
        ones = [
            joined([torch.full_like(x, float(i == n)) for n, x in enumerate(pieces)], firsts, dim)
            for i in range(len(pieces))
        ]
        torch.testing.assert_close(sum(ones), torch.ones_like(whole), rtol=0, atol=1e-6)
        assert all(((weight >= 0) & (weight <= 1)).all() for weight in ones)
    ramp = blended(torch.zeros(4), torch.ones(4), 2, 0)
    assert ramp.tolist() == [0, 0, 0.25, 0.75, 1, 1]


def test_a_long_clip_goes_through_in_memory_that_does_not_grow():
    clip, pulled, given = noise(100, 2, 2, 3), 0, 0

    def chunks():
        nonlocal pulled
        for i in range(0, 100, 7):
            pulled += len(clip[i : i + 7])
            yield clip[i : i + 7]

    firsts = starts(100, 9, 3)
    parts = []
    for part in stream((window.float() for window in windows_of(chunks(), firsts, 9)), firsts, 100):
        given += len(part)
        assert pulled - given <= 9 + 7 and part.dtype == torch.uint8
        parts.append(part)
    assert torch.equal(torch.cat(parts), clip)
    (held,) = windows_of(iter([clip[:2], clip[2:3]]), [0], 5)
    assert torch.equal(held, clip[[0, 1, 2, 2, 2]])


# --- through a model --------------------------------------------------------------------------------------------------


def made_by(model, clip, sampling=QUICK[0], **words):
    plan = Plan.of(model, len(clip), *clip.shape[1:3])
    return torch.cat(list(upscaled(model, iter(clip.split(4)), plan, RED, sampling=sampling, **words)))


def by_hand(model, small, number, first, row, column, size, seed=3):
    """One tile of one window, sampled alone: `small` is its own part, `size` the padded frame's, in pixels."""
    pipeline, by = model.pipeline, model.by
    frames, height, width = (len(small) - 1) * model.times + 1, small.shape[1] * by, small.shape[2] * by
    grid = pipeline.latent_grid(frames, height, width)
    field = torch.stack(
        [
            torch.randn(
                4, size[0] * by // 4, size[1] * by // 4, generator=generator(seed, first // 4 + i, "upscale-noise")
            )
            for i in range(grid[0])
        ],
        1,
    )
    y, x = row * by // 4, column * by // 4
    request = Request(
        prompt=RED,
        grid=grid,
        seed=derived_seed(seed, number, "upscale"),
        fps=pipeline.config.fps,
        references={model.name: pipeline.encode([small])},
        start=field[:, :, y : y + grid[1], x : x + grid[2]],
    )
    return pipeline.decode(pipeline.sample([request], QUICK[0]))[0]


@torch.no_grad()
def test_one_window_of_one_tile_is_the_whole(larger):
    clip = noise(5, 16, 16, 3)
    found = made_by(larger, clip, seed=3)
    assert found.shape == (5, 32, 32, 3) and torch.equal(found, by_hand(larger, clip, 0, 0, 0, 0, (16, 16)))
    cut = made_by(larger, clip[:4, :15, :13], seed=3)  # held and repeated at its ends, and cut again
    assert cut.shape == (4, 30, 26, 3)


@torch.no_grad()
def test_tiles_and_windows_are_the_whole_where_none_lies_over_another(larger):
    clip = noise(9, 16, 24, 3)
    plan = Plan.of(larger, 9, 16, 24)
    assert (plan.window, plan.firsts, plan.tile, plan.columns) == (5, (0, 2, 4), (16, 16), (0, 8))
    found = made_by(larger, clip, seed=3)
    assert found.shape == (9, 32, 48, 3)
    for number, first, frames in ((0, 0, slice(0, 2)), (2, 4, slice(7, 9))):
        for tile, column, columns in ((0, 0, slice(0, 16)), (1, 8, slice(32, 48))):
            small = clip[first : first + 5, :, column : column + 16]
            own = by_hand(larger, small, number * 2 + tile, first, 0, column, (16, 24))
            at = slice(frames.start - first, frames.stop - first)
            here = slice(columns.start - 2 * column, columns.stop - 2 * column)
            assert (found[frames, :, columns].int() - own[at, :, here].int()).abs().max() <= 1  # rounding
    again = torch.cat(list(upscaled(larger, iter([clip]), plan, RED, seed=3, tokens_per_pack=1, sampling=QUICK[0])))
    assert (again.float() - found.float()).abs().max() <= 1  # whatever is packed together


@torch.no_grad()
def test_frames_come_between_those_that_are_given(more):
    clip = noise(5, 16, 16, 3)
    found = made_by(more, clip, seed=3)
    assert found.shape == (9, 16, 16, 3)
    assert torch.equal(found, by_hand(more, clip, 0, 0, 0, 0, (16, 16)))
    assert len(made_by(more, noise(7, 16, 16, 3))) == 13


@torch.no_grad()
def test_filling_in_between_given_frames_in_pieces_is_that_of_the_whole(given_pipeline):
    pipeline, clip = load_pipeline(given_pipeline, "cpu"), noise(5, 16, 16, 3)
    cascade = Cascade.of([Stage.of(pipeline, "--model", times=2)], 5, (16, 16), 8.0)
    assert cascade.made == [(9, (16, 16), 16.0)]
    found = torch.cat(list(cascade.run(iter(clip.split(2)), RED, samplings=QUICK)))
    seed = derived_seed(0, 1, "cascade")
    assert torch.equal(found, raise_rate(pipeline, clip, 2, RED, fps=16.0, seed=seed, sampling=QUICK[0]))


# --- cascades and refusals --------------------------------------------------------------------------------------------


def test_stages_follow_each_other_in_any_order(run, folders, tmp_path, tiny_pipeline):
    for order in (("larger", "more"), ("more", "larger")):
        then = [x for name in order for x in ("--then", folders[name])]
        output = tmp_path / f"{order[0]}.mp4"
        words = ("--model", tiny_pipeline, "--steps", 1, "--prompt", RED, "--frames", 5, "--height", 16, "--width", 16)
        status, said, errors = run("inference/t2v.py", *words, *then, "--fps", 4, "--output", output)
        assert status == 0, errors
        info = probe(output)
        assert (info.frames, info.height, info.width, info.fps) == (9, 32, 32, 8.0)
        assert f"--then {folders['more']}: 5 frames" in said and "-> 9 of" in said


def test_a_real_clip_is_made_larger_and_gets_more_frames(run, folders, tmp_path):
    clip = stretched(noise(6, 4, 5, 3), 20, 26)
    write_video(tmp_path / "small.mp4", clip, 8.0)
    words = ("--clip", tmp_path / "small.mp4", "--steps", 1, "--prompt", RED)
    larger = ("--model", folders["larger"], "--reference-noise", 0.2, "--output", tmp_path / "large.mp4")
    assert run("inference/upscale.py", *words, *larger)[0] == 0
    info = probe(tmp_path / "large.mp4")
    assert (info.frames, info.height, info.width, info.fps) == (6, 40, 52, 8.0)
    more = ("--model", folders["more"], "--fps", 16, "--output", tmp_path / "more.mp4")
    assert run("inference/upscale.py", *words, *more)[0] == 0
    info = probe(tmp_path / "more.mp4")
    assert (info.frames, info.height, info.width, info.fps) == (11, 20, 26, 16.0)
    write_video(tmp_path / "one.png", clip[:1], 8.0)
    picture = ("--clip", tmp_path / "one.png", "--model", folders["larger"], "--output", tmp_path / "two.png")
    assert run("inference/upscale.py", *picture)[0] == 0
    assert read_frames(tmp_path / "two.png").shape == (1, 40, 52, 3)


def test_what_does_not_fit_is_one_message(run, folders, tiny_pipeline, tmp_path):
    write_video(tmp_path / "a.mp4", noise(3, 16, 16, 3), 8.0)
    clip, larger, more = ("--clip", tmp_path / "a.mp4"), ("--model", folders["larger"]), ("--model", folders["more"])
    for words, message in [
        ((*larger, "--by", 3), "--by 3: the model was trained to make clips 2 times as large"),
        ((*more, "--by", 2), "--by 2: the model was trained to make clips 1 times as large"),
        ((*more, "--fps", 32), "gives a clip 2 times as many frames a second, not 4"),
        ((*more, "--fps", 12), "--fps 12: .* has 8 frames a second"),
        (("--model", tiny_pipeline), "was not trained to make clips larger, nor to fill in between frames"),
        ((*more, "--reference-noise", 0.2), "--reference-noise: no model here was trained with noise in references"),
        ((*larger, "--reference-noise", 0.6), "the model was trained with 0 to 0.5 in low"),
        ((*larger, "--then", tiny_pipeline), "--then .* was not trained to make clips larger"),
    ]:
        said = refused(run("inference/upscale.py", *clip, *words, "--output", tmp_path / "b.mp4"))
        assert re.search(message, said), said
        assert not (tmp_path / "b.mp4").exists()


def test_a_distilled_stage_refuses_negative_prompts_before_anything_is_made(run, folders, tiny_pipeline, tmp_path):
    folder = shutil.copytree(folders["larger"], tmp_path / "student")
    index = json.loads((folder / "model_index.json").read_text())
    student = {"steps": None, "guidance": 3.0, "levels": None}
    (folder / "model_index.json").write_text(json.dumps(index | {"student": student}))
    for options in (
        ("inference/t2v.py", "--model", tiny_pipeline, "--then", folder, "--steps", 1, "--frames", 5),
        ("inference/upscale.py", "--model", folders["larger"], "--then", folder, "--clip", tmp_path / "one.mp4"),
    ):
        write_video(tmp_path / "one.mp4", noise(5, 16, 16, 3), 8.0)
        words = ("--prompt", RED, "--output", tmp_path / "b.mp4")
        said = refused(run(*options, *words, "--negative-prompt", "blur"))
        assert f"--then {folder}: negative prompts need a second pass" in said
        said = refused(run(*options, *words, "--negative-prompt", "word " * 99))
        assert "token" in said


def test_a_cascade_whose_stages_do_not_fit_is_refused_before_anything_is_made(larger, more):
    stages = [Stage(larger.pipeline, larger, 2, 1, "--then larger"), Stage(more.pipeline, more, 1, 2, "--then more")]
    assert Cascade.of(stages, 5, (16, 16), 8.0, [RED]).made == [(5, (32, 32), 8.0), (9, (32, 32), 16.0)]
    with pytest.raises(UserError, match="--then more: a clip of one frame has nothing between its frames"):
        Cascade.of(stages, 1, (16, 16), 8.0)
    with pytest.raises(UserError, match="--then larger: the model makes 32 x 32 pixels of 16 x 16, and gets 4 x 8"):
        Cascade.of(stages, 5, (4, 8), 8.0)
    with pytest.raises(UserError, match="--then larger: "):
        Cascade.of(stages, 5, (16, 16), 8.0, ["word " * 99])
    assert times_of(16.0, 8.0, None) == 2 and times_of(47.95, 23.976, None) == 2


@pytest.mark.parametrize("order", ["rollout", pytest.param("nuwa-xl", marks=pytest.mark.slow)])
def test_a_long_clip_goes_through_stages_as_it_is_made(order, run, folders, given_pipeline, tmp_path):
    """Written to the last frame, in the size and at the rate of the last stage."""
    words = ("--model", given_pipeline, "--prompt", RED, "--steps", 1, "--height", 16, "--width", 16, "--frames", 12)
    words += ("--order", order, "--fps", 8) + (("--window", 9, "--context", 5) if order == "rollout" else ())
    then, output = ("--then", folders["larger"], "--then", folders["more"]), ("--output", tmp_path / "long.mp4")
    status, said, errors = run("inference/long.py", *words, *then, "--reference-noise", 0.2, *output)
    assert status == 0, errors
    info = probe(tmp_path / "long.mp4")
    assert (info.frames, info.height, info.width, info.fps) == (23, 32, 32, 16.0)
    assert "12 frames of 16 x 16 at 8 fps -> 12 of 32 x 32 at 8, in" in said
    if order == "rollout":
        output = ("--output", tmp_path / "none.mp4")
        for more, message in (
            (("--reference-noise", 0.2), "--reference-noise is of what the models of --then see"),
            ((*then, "--reference-noise", 0.7), "the model was trained with 0 to 0.5 in low"),
            (("--then", given_pipeline, "--then", folders["more"], "--height", 8), "and gets 8 x 16"),
        ):
            found = run("inference/long.py", *words, *more, *output)
            assert found[0] and re.search(message, found[2]) and not (tmp_path / "none.mp4").exists()
