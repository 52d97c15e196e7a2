"""Stable Video Diffusion as its repository has it: what diffusers samples, and what can be asked for."""

import json
import shutil

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as theirs
from einops import rearrange
from PIL import Image

from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.packing import Packed
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.pipelines.tasks import image_to_video
from latentvid.rng import generator

FRAMES, SIZE = 5, (16, 24)
GRID = (FRAMES, 8, 12)
QUICK = {"steps": 4, "progress": False, "precision": torch.float32}


@pytest.fixture(scope="module")
def pipeline(repository):
    return load_pipeline(repository("svd"), device="cpu")


@pytest.fixture(scope="module")
def published(repository):
    pipe = StableVideoDiffusionPipeline.from_pretrained(repository("svd"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture() -> torch.Tensor:
    return torch.randint(0, 256, (*SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def noise(seed: int) -> torch.Tensor:
    """[1,f,C,h,w] of a request of this seed."""
    tokens = torch.randn(FRAMES * 96, 4, generator=generator(seed, 0, "sample"))
    return rearrange(tokens, "(f h w) C -> 1 f C h w", f=FRAMES, h=8)


@pytest.mark.parametrize(("asked", "deviation", "motion", "fps"), [(None, 0.02, 127, 7), (40.0, 0.3, 40, 11)])
def test_latents_are_those_of_diffusers(pipeline, published, monkeypatch, asked, deviation, motion, fps):
    """Guidance that grows from frame to frame, the noise in the picture, the numbers that are told, the schedule."""
    mine = lambda shape, **_: torch.randn(shape[1:], generator=generator(3, 0, "image-noise"))[None]  # noqa: E731
    monkeypatch.setattr(theirs, "randn_tensor", mine)
    want = published(
        Image.fromarray(picture().numpy()), *SIZE, FRAMES, QUICK["steps"], fps=fps, motion_bucket_id=motion,
        noise_aug_strength=deviation, latents=noise(3), output_type="latent",
    ).frames[0]  # fmt: skip
    sampling = Sampling(**QUICK, image_noise=deviation, motion_strength=asked)
    (begun,) = pipeline.begin_with([picture()], [GRID], torch.float32, seed=3, sampling=sampling)
    (got,) = pipeline.sample([Request(prompt="", grid=GRID, seed=3, fps=fps, **begun)], sampling)
    assert want.std() > 0.1
    torch.testing.assert_close(got.transpose(0, 1), want, rtol=1e-4, atol=1e-4)


def test_defaults_are_those_of_diffusers(pipeline):
    assert pipeline.guidance() == Guidance(scale=3.0, first=1.0)
    assert (pipeline.config.steps, pipeline.config.fps, pipeline.solver) == (25, 7.0, "euler")
    config = pipeline.scheduler.config
    assert (config.path, config.target, config.spacing, config.sigma_max) == ("edm", "v", "karras", 700.0)


def test_clips_of_two_sizes_are_one_pack_and_each_what_it_is_alone(pipeline):
    pictures = [picture(), picture()[:, :16]]
    both = image_to_video(pipeline, pictures, ["", ""], FRAMES, seed=1, sampling=Sampling(**QUICK))
    assert [tuple(clip.shape) for clip in both] == [(FRAMES, 16, 24, 3), (FRAMES, 16, 16, 3)]
    alone = image_to_video(pipeline, pictures[1:], [""], FRAMES, seed=2, sampling=Sampling(**QUICK))[0]
    assert (both[1].int() - alone.int()).abs().max() <= 1


def test_guidance_grows_from_the_first_frame_to_the_last():
    layout = Packed.of([(3, 1, 1), (1, 1, 1)])
    one, none, t = torch.ones(4, 1), torch.zeros(4, 1), torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert Guidance(scale=3.0, first=1.0).combine(one, none, t, layout)[:, 0].tolist() == [1.0, 2.0, 3.0, 1.0]
    assert Guidance(scale=3.0).combine(one, none, t, layout)[:, 0].tolist() == [3.0] * 4
    given = torch.tensor([0.0, 0.5, 0.5, 0.5])  # a given frame is as it is
    assert Guidance(scale=3.0, first=2.0).combine(one, none, given, layout)[:, 0].tolist() == [1.0, 2.5, 3.0, 2.0]


def test_what_cannot_be_is_named(pipeline, repository, tmp_path):
    with pytest.raises(UserError, match="makes videos from pictures alone"):
        pipeline.sample([Request(prompt="", grid=GRID)], Sampling(**QUICK))
    folder = shutil.copytree(repository("svd"), tmp_path / "svd")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_karras_sigmas": False}))
    with pytest.raises(UserError, match="use_karras_sigmas=False: only True can be sampled here"):
        load_pipeline(folder)
    index = json.loads((folder / "model_index.json").read_text())
    del index["image_encoder"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="image_encoder is missing: StableVideoDiffusionPipeline needs it"):
        load_pipeline(folder)
