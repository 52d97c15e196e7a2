"""Long clips in NUWA-XL's order: exact lengths, keyframes that stay, the same whatever the packs are."""

from itertools import islice

import pytest
import torch

from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.pipelines import hierarchy
from latentvid.pipelines.hierarchy import Plan, nuwa_xl
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling

RED, BLUE = "a red 7 moves up", "a blue three bounces down"
SEGMENT = 3 * 4 * 2  # tokens of a window of 9 frames of 32 x 16
SAMPLING = Sampling(steps=1, guidance=Guidance(scale=2.0), progress=False)


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline) -> LatentVideoPipeline:
    pipeline = load_pipeline(tiny_pipeline, "cpu")
    pipeline.register_to_config(given=("plain", "ends"), width=16)
    return pipeline


def make(pipeline, frames, **options) -> torch.Tensor:
    return torch.cat(list(nuwa_xl(pipeline, RED, frames, sampling=SAMPLING, **options)))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to one grey level: rounding of values that differ by 1e-6."""
    return a.shape == b.shape and (a.int() - b.int()).abs().max() <= 1


@pytest.mark.parametrize(("frames", "levels"), [(1, 0), (5, 0), (6, 1), (21, 1), (22, 2)])
def test_the_length_is_what_was_asked(pipeline, frames, levels):
    assert Plan.of(pipeline, frames).levels == levels
    video = make(pipeline, frames)
    assert tuple(video.shape) == (frames, 32, 16, 3) and video.dtype == torch.uint8


@pytest.mark.parametrize("window", [5, 9, 17])
@pytest.mark.parametrize("frames", [1, 2, 17, 18, 100, 5000])
def test_plans_make_what_is_needed_and_no_segment_more(pipeline, window, frames):
    pipeline.register_to_config(frames=window)
    plan = Plan.of(pipeline, frames)
    pipeline.register_to_config(frames=5)
    assert plan.keyframes(plan.levels) == frames and plan.segments < window
    if frames > 1:
        assert plan.keyframes(0) == plan.segments + 1
        assert plan.segments * plan.factor**plan.levels + 1 >= frames
        assert (plan.segments - 1) * plan.factor**plan.levels + 1 < frames
    for level in range(plan.levels):  # each level fills every segment of the one before, as far as it is needed
        assert (plan.keyframes(level) - 1) * plan.factor + 1 >= plan.keyframes(level + 1)
        assert (plan.keyframes(level) - 2) * plan.factor + 1 < plan.keyframes(level + 1)


def test_keyframes_are_the_global_clips_and_stay_through_the_levels(pipeline, monkeypatch):
    levels = []
    infilled = hierarchy._infilled

    def spy(pipeline, keys, *more):
        levels.append(keys)
        return infilled(pipeline, keys, *more)

    monkeypatch.setattr(hierarchy, "_infilled", spy)
    video = make(pipeline, 52, seed=3)
    plan = Plan.of(pipeline, 52)
    assert (plan.segments, plan.levels, plan.factor) == (3, 2, 5)
    clip = pipeline(RED, seed=3, sampling=SAMPLING, output_type="uint8").frames[0]
    assert close(levels[0], clip[[0, 1, 3, 4]])  # evenly spaced
    assert torch.equal(levels[0][:3], levels[1][::5][:3])
    assert torch.equal(video[::5], levels[1][: len(video[::5])])


@pytest.mark.parametrize("tokens", [1, 2 * SEGMENT, 10**6])
def test_packs_do_not_change_the_clip(pipeline, tokens):
    reference = make(pipeline, 32, tokens_per_pack=3 * SEGMENT)
    assert close(make(pipeline, 32, tokens_per_pack=tokens), reference)


def test_packs_are_yielded_as_they_are_made(pipeline, monkeypatch):
    packs = []
    sample = LatentVideoPipeline.sample

    def spy(self, requests, *more):
        packs.append(len(requests))
        return sample(self, requests, *more)

    monkeypatch.setattr(LatentVideoPipeline, "sample", spy)
    pieces = nuwa_xl(pipeline, RED, 101, tokens_per_pack=3 * SEGMENT, sampling=SAMPLING)
    assert [len(piece) for piece in islice(pieces, 2)] == [15, 15]
    assert packs == [1, 3, 1, 3, 3]  # the global clip, its 4 segments, and two packs of the last level's 20


def test_seeds_and_local_prompts_decide(pipeline):
    video = make(pipeline, 16)
    assert not close(video, make(pipeline, 16, seed=1))
    assert Plan.of(pipeline, 16).segments == 3
    assert close(video, make(pipeline, 16, local_prompts=[RED] * 3))
    other = make(pipeline, 16, local_prompts=[RED, BLUE, RED])
    assert close(video[:6], other[:6]) and close(video[10:], other[10:]) and not close(video[6:10], other[6:10])
    repeated = video[1:5], video[6:10]
    assert not close(*repeated)  # each segment has noise of its own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 0}, "0 frames: ask for at least 1"),
        ({"local_prompts": [RED] * 2}, "2 local prompts for 3 segments between the keyframes of 16 frames"),
        ({"num_frames": 5, "local_prompts": [RED] * 4}, "5 frames make a single clip of this model"),
        ({"tokens_per_pack": 0}, "tokens_per_pack=0"),
        ({"height": 30}, "30 x 16 pixels: this model makes multiples of 8"),
    ],
)
def test_bad_requests_are_said_before_anything_is_made(pipeline, change, message):
    with pytest.raises(UserError, match=message):
        nuwa_xl(pipeline, **{"prompt": RED, "num_frames": 16, **change})


def test_a_model_of_images_is_refused(tiny_pipeline):
    images = load_pipeline(tiny_pipeline, "cpu")
    images.register_to_config(frames=1)
    with pytest.raises(UserError, match="trained for single images"):
        nuwa_xl(images, RED, 16)
