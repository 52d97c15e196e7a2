"""Sampling levels of published schedulers are those of diffusers' classes; what has no equal here is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.errors import UserError
from latentvid.models.open.recipe import Recipe
from latentvid.models.open.recipes import recipe_of
from latentvid.models.open.schedule import read_schedule
from latentvid.text.policy import Reading

RECIPE = Recipe(task="t2v", scheduler={}, text=(Reading(tokens=8),))
LEFT_TO_IT = replace(RECIPE, scheduler={"spacing": "points"})  # the pipeline gives the scheduler no sigmas
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
COG = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}


def read(scheduler, folder, recipe=RECIPE, pipeline="WanPipeline") -> tuple[LatentVideoScheduler, str]:
    scheduler.save_pretrained(folder)
    arguments, solver = read_schedule(folder, recipe, pipeline)
    return LatentVideoScheduler(**arguments), solver


@pytest.mark.parametrize("steps", [1, 3, 10, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
def test_flow_euler(tmp_path, steps, shift):
    """As Wan leaves it to the scheduler, and as HunyuanVideo gives it sigmas."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours, solver = read(theirs, tmp_path, LEFT_TO_IT)
    theirs.set_timesteps(steps)
    torch.testing.assert_close(ours.levels(steps), theirs.sigmas, rtol=0, atol=1e-6)
    ours, _ = read(theirs, tmp_path)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
    torch.testing.assert_close(ours.levels(steps), theirs.sigmas, rtol=0, atol=1e-6)
    assert solver == "euler" and torch.equal(ours.told(ours.levels(steps)), ours.levels(steps))


@pytest.mark.parametrize("tokens", [300, 1024, 4992])
def test_shift_by_tokens_and_a_last_level(tmp_path, tokens):
    """LTX-Video's."""
    range_of_tokens = {"base_image_seq_len": 1024, "max_image_seq_len": 4096, "base_shift": 0.95, "max_shift": 2.05}
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1, **range_of_tokens)
    ours, _ = read(theirs, tmp_path)
    mu = 0.95 + (tokens - 1024) * (2.05 - 0.95) / (4096 - 1024)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 7, 7), mu=mu)
    torch.testing.assert_close(ours.levels(7, tokens), theirs.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [2, 9, 64])
def test_mochis_curve(tmp_path, steps):
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

    theirs = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    ours, _ = read(theirs, tmp_path, replace(RECIPE, scheduler={"spacing": "linear_quadratic"}), "MochiPipeline")
    theirs.set_timesteps(sigmas=np.array(linear_quadratic_schedule(steps, 0.025)))
    torch.testing.assert_close(ours.levels(steps), 1 - theirs.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 7, 10, 40, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_unipc_and_the_whole_steps_that_it_tells(tmp_path, steps, shift):
    theirs = UniPCMultistepScheduler(**FLOW, flow_shift=shift)
    ours, solver = read(theirs, tmp_path, LEFT_TO_IT)
    theirs.set_timesteps(steps)
    levels = ours.levels(steps)
    torch.testing.assert_close(levels, theirs.sigmas, rtol=0, atol=2e-6)
    assert solver == "unipc"
    assert torch.equal((1000 * ours.told(levels)).round().long()[:-1], theirs.timesteps) and ours.told(levels)[-1] == 0


@pytest.mark.parametrize("cls, solver", [(CogVideoXDDIMScheduler, "euler"), (CogVideoXDPMScheduler, "cogvideox_dpm")])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_cogvideox(tmp_path, cls, solver, shift):
    theirs = cls(**COG, snr_shift_scale=shift)
    ours, found = read(theirs, tmp_path)
    theirs.set_timesteps(10)
    levels = ours.levels(10)
    assert found == solver and torch.equal((1000 * levels[:-1]).round().long() - 1, theirs.timesteps)
    alpha, sigma = ours.path.coefficients(torch.arange(1, 1001) / 1000)
    torch.testing.assert_close(alpha**2, theirs.alphas_cumprod.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000))


@pytest.mark.parametrize(
    "scheduler, said",
    [
        (FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True), "use_karras_sigmas=True: only False"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas=True: only False"),
        (UniPCMultistepScheduler(), "use_flow_sigmas=False: only True"),
        (UniPCMultistepScheduler(**FLOW, solver_order=3), "solver_order=3: only 2"),
        (CogVideoXDDIMScheduler(prediction_type="v_prediction"), "timestep_spacing='leading': only 'trailing'"),
        (HeunDiscreteScheduler(), "_class_name='HeunDiscreteScheduler': must be one of FlowMatchEuler"),
        (DDIMScheduler(), "_class_name='DDIMScheduler' is of DDPM's noise, and this model has another"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(tmp_path, scheduler, said):
    with pytest.raises(UserError, match="scheduler_config.json") as error:
        read(scheduler, tmp_path)
    assert said in str(error.value)


@pytest.mark.parametrize(("spacing", "offset"), [("trailing", 0), ("leading", 1), ("linspace", 0)])
def test_steps_of_stable_diffusion_are_those_of_diffusers(spacing, offset, tmp_path):
    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=offset,
        timestep_spacing=spacing,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    made, solver = read_schedule(tmp_path, recipe_of("StableDiffusionPipeline", {}, {}), "StableDiffusionPipeline")
    ours = LatentVideoScheduler(**made)
    assert solver == "euler"
    for steps in (4, 10, 50):
        theirs.set_timesteps(steps)
        assert ((1000 * ours.levels(steps)[:-1]).round().long() - 1).tolist() == theirs.timesteps.tolist()
    alpha, _ = ours.path.coefficients(torch.tensor([0.001, 0.5, 1.0]))
    torch.testing.assert_close(alpha.square(), theirs.alphas_cumprod[[0, 499, 999]], rtol=1e-5, atol=1e-7)
    assert float(ours.levels(7)[-1]) == 0
