"""AnimateDiff and ModelScope sampled by our pipeline: latents are those of diffusers' own for the same noise."""

import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, TextToVideoSDPipeline
from open_animatediff import DDIM, adapter
from torch import Tensor

from latentvid.diffusion.guidance import Guidance
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.errors import UserError
from latentvid.packing import Packed, unpatchify
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling, draw_noise
from latentvid.rng import generator

PROMPTS, NEGATIVE, STEPS = ["a red 7 moves up", "a blue 3 moves down and to the left"], "a green 5", 4
SIZES = [(3, 8, 16), (5, 16, 8)]  # frames, height, width: mixed
HOW = Sampling(steps=STEPS, guidance=Guidance(scale=5.0), precision=torch.float32, progress=False)


def noise(grid, seed: int) -> Tensor:
    layout = Packed.of([grid])
    return unpatchify(draw_noise([generator(seed, 0, "sample")], layout, 4), layout, (1, 1, 1))[0]


def check(ours, theirs) -> None:
    """Two prompts of two sizes in one pack against each alone."""
    theirs.set_progress_bar_config(disable=True)
    grids = [ours.latent_grid(*size) for size in SIZES]
    asked = [
        Request(prompt=prompt, negative_prompt=NEGATIVE, grid=grid, seed=i)
        for i, (grid, prompt) in enumerate(zip(grids, PROMPTS, strict=True))
    ]
    for i, got in enumerate(ours.sample(asked, HOW)):
        frames, height, width = SIZES[i]
        want = theirs(
            prompt=PROMPTS[i], negative_prompt=NEGATIVE, num_frames=frames, height=height, width=width,
            num_inference_steps=STEPS, guidance_scale=5.0, latents=noise(grids[i], i)[None], output_type="latent",
        ).frames[0]  # fmt: skip
        assert 0.1 < float(want.abs().max()) < 1e4
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * max(1.0, float(want.abs().max())))


def test_a_published_adapter_samples_as_diffusers_does(repository, tmp_path, capsys):
    folder = repository("stable_diffusion")
    adapter().save_pretrained(tmp_path / "motion")
    ours = load_pipeline(folder, "cpu", mixed_precision="no", motion=tmp_path / "motion")
    assert f"motion modules {tmp_path / 'motion'}" in capsys.readouterr().err
    assert (ours.config.frames, ours.config.steps, ours.scheduler.config.betas) == (8, 25, "linear")
    ours.scheduler = LatentVideoScheduler(path="ddpm", target="eps", betas="linear", beta_start=0.00085, beta_end=0.012)
    theirs = AnimateDiffPipeline.from_pretrained(
        folder, motion_adapter=MotionAdapter.from_pretrained(tmp_path / "motion"),
        scheduler=DDIMScheduler(**DDIM, beta_schedule="linear"),
    )  # fmt: skip
    check(ours, theirs)
    theirs.save_pretrained(tmp_path / "whole")  # with its motion modules in the U-Net
    whole = load_pipeline(tmp_path / "whole", "cpu", mixed_precision="no")
    assert whole.config.frames == 8  # no more than it has positions
    check(whole, theirs)
    with pytest.raises(UserError, match="has motion modules already"):
        load_pipeline(tmp_path / "whole", "cpu", mixed_precision="no", motion=tmp_path / "motion")
    with pytest.raises(UserError, match="10 frames: animatediff has positions for at most 8"):
        ours("a red 7", num_frames=10, height=8, width=8, sampling=HOW)


def test_modelscope_samples_as_diffusers_does(repository):
    folder = repository("modelscope")
    check(load_pipeline(folder, "cpu", mixed_precision="no"), TextToVideoSDPipeline.from_pretrained(folder))
