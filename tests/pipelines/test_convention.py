"""The call as diffusers' pipelines have it: names, generators, outputs, callbacks."""

import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from PIL import Image

from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.pipelines.tasks import image_to_video

RED, BLUE = "a red 7 moves up", "a blue 3 moves left"
QUIET = Sampling(progress=False, steps=2)
SMALL = {"num_frames": 5, "height": 16, "width": 24, "sampling": QUIET}


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline):
    return load_pipeline(tiny_pipeline, "cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(pipeline, prompt=RED, **words):
    return pipeline(prompt, **{**SMALL, **words}, output_type="uint8").frames


def test_output_types_are_one_clip_in_other_forms(pipeline):
    want = clips(pipeline, [RED, BLUE], seed=3)
    found = {kind: pipeline([RED, BLUE], **SMALL, seed=3, output_type=kind).frames for kind in ("pil", "np", "pt")}
    assert pipeline([RED, BLUE], **SMALL, seed=3).frames == found["pil"]  # the default
    assert (found["np"].shape, found["np"].dtype) == ((2, 5, 16, 24, 3), np.float32)
    assert (found["pt"].shape, found["pt"].dtype) == ((2, 5, 3, 16, 24), torch.float32)
    for i, clip in enumerate(want):
        assert len(found["pil"][i]) == 5 and all(isinstance(frame, Image.Image) for frame in found["pil"][i])
        assert np.array_equal(np.stack([np.asarray(frame) for frame in found["pil"][i]]), clip.numpy())
        assert np.array_equal((found["np"][i] * 255).round(), clip.numpy())
        assert torch.equal((found["pt"][i] * 255).round(), clip.permute(0, 3, 1, 2).float())


def test_latents_decode_to_the_clip_and_unequal_sizes_are_a_list(pipeline):
    latents = pipeline(RED, **SMALL, output_type="latent").frames
    assert latents.shape == (1, 4, 2, 4, 6)
    assert torch.equal(pipeline.decode(list(latents))[0], clips(pipeline)[0])
    sizes = {**SMALL, "num_frames": [5, 1]}
    for kind, shapes in {"latent": [(4, 2, 4, 6), (4, 1, 4, 6)], "np": [(5, 16, 24, 3), (1, 16, 24, 3)]}.items():
        found = pipeline([RED, BLUE], **sizes, output_type=kind).frames
        assert isinstance(found, list) and [tuple(one.shape) for one in found] == shapes


def test_what_is_returned_is_theirs(pipeline):
    output = pipeline(RED, **SMALL)
    assert output[0] is output.frames and output.fps == 8.0
    (frames,) = pipeline(RED, **SMALL, return_dict=False)
    assert frames == output.frames
    with pytest.raises(UserError, match="output_type='mp4': choose pil, np, pt, latent, uint8"):
        pipeline(RED, **SMALL, output_type="mp4")


def test_generators_say_the_noise(pipeline):
    one, other = (clips(pipeline, [RED, RED], generator=seeded(5)) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and not torch.equal(one[0], one[1])
    goes_on = seeded(5)
    first, second = (clips(pipeline, generator=goes_on)[0] for _ in range(2))
    assert not torch.equal(first, second)  # as theirs: a generator goes on from call to call
    both = clips(pipeline, [RED, RED], generator=[seeded(5), seeded(5)])
    assert torch.equal(both[0], both[1])
    with pytest.raises(UserError, match="1 generator for 2 prompts"):
        clips(pipeline, [RED, RED], generator=[seeded(5)])
    with pytest.raises(UserError, match="generator and seed both say"):
        clips(pipeline, generator=seeded(5), seed=1)


def test_steps_and_guidance_are_over_those_of_the_sampling(pipeline):
    guided = Sampling(progress=False, steps=3, guidance=Guidance(scale=5.0, rescale=0.5))
    want = clips(pipeline, sampling=guided)[0]
    low = Sampling(progress=False, steps=2, guidance=Guidance(scale=2.0, rescale=0.5))
    assert torch.equal(clips(pipeline, sampling=low, num_inference_steps=3, guidance_scale=5.0)[0], want)
    assert not torch.equal(clips(pipeline, sampling=low)[0], want)
    for name, value in {"num_inference_steps": 0, "guidance_scale": -1.0}.items():
        with pytest.raises(UserError, match=f"{name}={value:g}: must be"):
            clips(pipeline, **{name: value})


def test_a_callback_sees_each_step_and_may_change_the_latents(pipeline):
    seen = []

    def watch(pipe, step, timestep, told):
        assert pipe is pipeline and list(told) == ["latents"]
        seen.append((step, round(float(timestep), 3), tuple(told["latents"].shape), told["latents"].std().item()))
        return told

    plain = clips(pipeline)[0]
    assert torch.equal(clips(pipeline, callback_on_step_end=watch)[0], plain)
    assert [row[0] for row in seen] == [0, 1] and {row[2] for row in seen} == {(1, 4, 2, 4, 6)}
    assert seen[0][1] > seen[1][1] > 0 and seen[0][3] != seen[1][3]
    latents = pipeline(RED, **SMALL, output_type="latent").frames
    zero = {"latents": torch.zeros_like(latents)}
    last = pipeline(
        RED, **SMALL, output_type="latent", callback_on_step_end=lambda p, i, t, told: zero if i == 1 else told
    )
    assert torch.equal(last.frames, zero["latents"])
    with pytest.raises(UserError, match="latents of another shape"):
        clips(pipeline, callback_on_step_end=lambda *_: {"latents": torch.zeros(1, 4, 2, 4, 4)})


def test_a_callback_ends_the_run_and_the_next_is_whole(pipeline):
    steps = []

    def stop(pipe, step, timestep, told):
        steps.append(step)
        pipe._interrupt = True
        return told

    assert not torch.equal(clips(pipeline, callback_on_step_end=stop)[0], clips(pipeline)[0]) and steps == [0]
    count = []
    clips(pipeline, callback_on_step_end=lambda p, i, t, told: count.append(i))
    assert count == [0, 1]


def test_callbacks_of_theirs_are_asked_what_they_need(pipeline):
    class Wanting(PipelineCallback):
        tensor_inputs = ["prompt_embeds"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            return callback_kwargs

    with pytest.raises(UserError, match="no prompt_embeds here: choose of latents"):
        clips(pipeline, callback_on_step_end=Wanting())
    with pytest.raises(UserError, match="no noise here"):
        clips(pipeline, callback_on_step_end=lambda *_: {}, callback_on_step_end_tensor_inputs=["noise"])


def test_tasks_have_the_callback_by_their_sampling(pipeline):
    steps = []
    sampling = Sampling(progress=False, steps=2, on_step_end=lambda p, i, t, told: steps.append(i))
    picture = torch.zeros(16, 24, 3, dtype=torch.uint8)
    image_to_video(pipeline, [picture], [RED], num_frames=5, sampling=sampling)
    assert steps == [0, 1]
