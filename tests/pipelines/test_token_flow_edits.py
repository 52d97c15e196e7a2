"""TokenFlow edits of clips: as frame by frame where there is nothing to share, however many frames pass together."""

import errno
import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.models.token_flow import TokenFlow, between
from latentvid.packing import Packed, patchify, unpatchify
from latentvid.pipelines import edits, token_flow
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.predict import make_predict
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.pipelines.token_flow import Trajectory, keyframes
from latentvid.rng import derived_seed

RED, BLUE = "a red 7", "a blue three"
HOW = Sampling(steps=2, guidance=Guidance(scale=3.0, interval=(0.0, 0.7)), precision=torch.float32, progress=False)


@pytest.fixture(scope="module")
def pipeline(image_pipeline) -> LatentVideoPipeline:
    return load_pipeline(image_pipeline, "cpu")


def clip(frames: int, height: int = 16, width: int = 24) -> Tensor:
    """Noise that moves a pixel a frame."""
    picture = torch.randint(0, 256, (height, width + frames, 3), generator=torch.Generator().manual_seed(0))
    return torch.stack([picture[:, i : i + width] for i in range(frames)]).to(torch.uint8)


def close(a: Tensor, b: Tensor, most: int = 1) -> bool:
    return a.shape == b.shape and int((a.int() - b.int()).abs().max()) <= most


def edited(pipeline, pixels: Tensor, how: Sampling = HOW, **more) -> Tensor:
    return token_flow.token_flow(pipeline, pixels, RED, BLUE, 0.8, sampling=how, **more)


def test_a_picture_is_edited_as_by_inversion(pipeline):
    (want,) = edits.edit(pipeline, [clip(1)], [RED], [BLUE], "inversion", 0.8, sampling=HOW)
    made = edited(pipeline, clip(1))
    assert made.dtype == torch.uint8 and close(made, want) and not close(made, clip(1), 20)


def test_a_picture_is_edited_by_stable_diffusion(repository):
    pipeline = load_pipeline(repository("stable_diffusion"), "cpu", mixed_precision="no")
    (want,) = edits.edit(pipeline, [clip(1)], [RED], [BLUE], "inversion", 0.8, sampling=HOW)
    assert close(edited(pipeline, clip(1)), want)
    made = edited(pipeline, clip(3), every=2)
    with pytest.raises(UserError, match="reach 1: the keyframes of a U-Net attend to all of them"):
        edited(pipeline, clip(3), reach=1)
    assert len(made) == 3 and close(edited(pipeline, clip(3), every=2, tokens_per_pass=1), made)


def test_however_many_frames_pass_together_the_clip_is_the_same(pipeline):
    whole = edited(pipeline, clip(5), every=2)
    for tokens in (1, 12, 13):  # a frame has 6
        assert close(edited(pipeline, clip(5), every=2, tokens_per_pass=tokens), whole)
    assert not close(edited(pipeline, clip(5), every=2, seed=1), whole)  # other keyframes
    assert not close(edited(pipeline, clip(5), every=2, blend="linear"), whole)
    by_frames = [edits.edit(pipeline, [x[None]], [RED], [BLUE], "inversion", 0.8, sampling=HOW)[0] for x in clip(5)]
    assert not close(torch.cat(by_frames), whole, 3)


@torch.no_grad()
def slow(pipeline, frames: Tensor, every: int, blend: str, seed: int, anchor=None):
    """The algorithm, one noise level after another, all frames at once, by the network and the scheduler alone.

    anchor: the frame before, as inverted and as edited, its tokens at each level. Returns clip and next anchor.
    """
    network, scheduler, count = pipeline.transformer, pipeline.scheduler, len(frames)
    how = replace(HOW, guidance=Guidance(scale=3.0, interval=(0.0, 0.7)))
    z0, (grid, *_) = patchify(pipeline.encode([x[None] for x in frames], torch.float32), network.patch)
    n = len(z0) // count

    def says(prompt: str, guidance: Guidance, z: Tensor, t: Tensor) -> Tensor:
        requests = [Request(prompt=prompt, grid=pipeline.latent_grid(1, 16, 24), level=0.8)] * (len(z) // n)
        batch, _ = pipeline._prepare(requests, replace(how, guidance=guidance))
        return make_predict(network, pipeline.reader, batch, guidance, scheduler)(z, t.expand(len(requests)))

    batch, _ = pipeline._prepare([Request(prompt=RED, grid=pipeline.latent_grid(1, 16, 24), level=0.8)], how)
    levels = batch.levels  # [K+1,1]
    path = [z0]
    for t, s in zip(levels.flip(0)[1:], levels.flip(0)[:-1], strict=True):  # from s up to t
        z = path[0]
        path.insert(0, z + (z - scheduler.step(says(RED, Guidance(), z, t), t, s, z)))  # on the straight line
    flow, z, states = TokenFlow(network), path[0], []
    for step, (t, s) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        keys = keyframes(count, every, seed, step)
        of_keys = (keys[:, None] * n + torch.arange(n)).flatten()
        source, edited = path[step][of_keys], z[of_keys]
        if anchor is not None:
            source, edited = torch.cat([anchor[0][step], source]), torch.cat([anchor[1][step], edited])
            keys = torch.cat([torch.tensor([-1]), keys])
        where = between(torch.arange(count), keys, blend)
        with flow.reading_keyframes():
            says(RED, Guidance(), source, t)
        with flow.joint(len(keys), as_source=True, reach=1):
            says(BLUE, how.guidance, edited, t)
        with flow.reading(where):
            says(RED, Guidance(), path[step], t)
        states.append(z[-n:])
        with flow.flowing(where):
            z = scheduler.step(says(BLUE, how.guidance, z, t), t, s, z)
    made = pipeline.decode(unpatchify(z, Packed.of([grid] * count), network.patch), torch.float32)
    return torch.cat(made), ([x[-n:] for x in path], states)


def test_it_is_the_algorithm_step_by_step(pipeline):
    how = replace(HOW, guidance=Guidance(scale=3.0))
    want, anchor = slow(pipeline, clip(5)[:3], 2, "sigmoid", 3)
    assert close(edited(pipeline, clip(5)[:3], how, every=2, seed=3, source_attention=1.0), want)
    # window by window: the last frame of the one before is a keyframe of the next
    after, _ = slow(pipeline, clip(5)[3:], 2, "sigmoid", derived_seed(3, 1, "window"), anchor)
    assert close(
        edited(pipeline, clip(5), how, every=2, seed=3, source_attention=1.0, window=3), torch.cat([want, after])
    )
    alone, _ = slow(pipeline, clip(5)[3:], 2, "sigmoid", derived_seed(3, 1, "window"))
    assert not close(alone, after)


def test_keyframes_of_the_first_steps_attend_as_the_source(pipeline, monkeypatch):
    seen, joint = [], TokenFlow.joint

    def spy(self, count: int, as_source: bool = False, reach: int | None = None):
        seen.append((count, as_source, reach))
        return joint(self, count, as_source, reach)

    monkeypatch.setattr(TokenFlow, "joint", spy)
    edited(pipeline, clip(3), replace(HOW, steps=4), every=2, source_attention=0.5)
    assert seen == [(2, True, 1), (2, True, 1), (2, False, 1), (2, False, 1)]
    seen.clear()
    edited(pipeline, clip(3), every=1, reach=5)
    assert seen == [(3, False, 5)] * 2


def test_a_keyframe_is_drawn_in_each_few_frames():
    drawn = [keyframes(11, 4, 0, step) for step in range(40)]
    for keys in drawn:
        assert (keys // 4).tolist() == [0, 1, 2] and int(keys[-1]) < 11
    assert {int(keys[0]) for keys in drawn} == {0, 1, 2, 3} and {int(keys[2]) for keys in drawn} == {8, 9, 10}
    assert torch.equal(keyframes(11, 4, 0, 5), drawn[5]) and torch.equal(keyframes(6, 1, 9, 9), torch.arange(6))


def test_what_is_kept_on_disk_comes_back_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(token_flow.tempfile, "tempdir", str(tmp_path))
    values = torch.randn(2, 3, 4, 5)
    with Trajectory(2, 3, (4, 5)) as kept:
        for step in range(2):
            kept.put(step, torch.tensor([0, 2]), values[step, [0, 2]])
            kept.put(step, torch.tensor([1]), values[step, [1]].double())
        assert torch.equal(kept.at(1, torch.tensor([2, 1])), values[1, [2, 1]])
        assert torch.equal(kept.at(0, torch.arange(3)), values[0])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_before_work_begins(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(token_flow.os, "posix_fallocate", full)
    with pytest.raises(UserError, match="GiB for the frames at each noise level.*No space left.*set TMPDIR"):
        Trajectory(50, 100, (64, 64, 4))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"every": 0}, "a keyframe in every 0 frames"),
        ({"source_attention": 1.5}, "source_attention 1.5: give a share of the steps"),
        ({"reach": -1}, "reach -1: give a number of keyframes"),
        ({"blend": "cubic"}, "blend 'cubic': one of sigmoid, linear"),
        ({"how": replace(HOW, solver="heun")}, "with solver 'euler', not 'heun'"),
    ],
)
def test_wrong_words_are_named(words, message, pipeline):
    with pytest.raises(UserError, match=message):
        edited(pipeline, clip(2), **words)


@pytest.mark.parametrize("strength", [0.0, 1.1])
def test_levels_out_of_range_are_named(strength, pipeline):
    with pytest.raises(UserError, match=f"strength {strength}"):
        token_flow.token_flow(pipeline, clip(2), RED, BLUE, strength, sampling=HOW)


def test_a_model_of_clips_alone_is_named(tiny_pipeline):
    video = load_pipeline(tiny_pipeline, "cpu")
    with pytest.raises(UserError, match="trained on clips alone \\(up to 5 frames\\)"):
        edited(video, clip(2))
    video.register_to_config(
        trained=[{"frames": 5, "height": 32, "width": 32}, {"frames": 1, "height": 32, "width": 32}]
    )
    assert len(edited(video, clip(2))) == 2  # it knows pictures too


def test_a_published_video_model_is_named(repository):
    with pytest.raises(UserError, match="this one is unet3d: take another method"):
        edited(load_pipeline(repository("modelscope"), "cpu", mixed_precision="no"), clip(2))
