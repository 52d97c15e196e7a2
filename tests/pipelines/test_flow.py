"""Edits by FlowEdit through a pipeline: both prompts, both scales of guidance, any pack."""

from dataclasses import replace

import pytest
import torch

from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.pipelines import edits, local
from latentvid.pipelines.flow import FlowEdit, flow_edited
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling

SAMPLING = Sampling(steps=4, progress=False, guidance=Guidance(scale=3.0), precision=torch.float32)
RED, BLUE = "a red 7 moves up", "a blue three"


@pytest.fixture(scope="module")
def pipeline(given_pipeline) -> LatentVideoPipeline:
    return load_pipeline(given_pipeline, "cpu")


def clip(frames: int, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=noise)


def edit(pipeline: LatentVideoPipeline, clips, sources, targets, how=None, seed: int = 0, **options):
    return edits.edit(
        pipeline, clips, sources, targets, "flow", flow=how, seed=seed, sampling=replace(SAMPLING, **options)
    )


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.int() - b.int()).abs().float().mean().item()


def test_one_prompt_and_one_scale_leave_the_clip_as_the_vae_shows_it(pipeline):
    source = clip(6)
    want = pipeline.decode(pipeline.encode([local.whole_groups(source, 4)], torch.float32), torch.float32)[0][:6]
    (same,) = edit(pipeline, [source], [RED], [RED], FlowEdit(source_guidance=3.0))
    assert same.shape == source.shape and difference(same, want) < 0.5
    (scaled,) = edit(pipeline, [source], [RED], [RED], FlowEdit(source_guidance=1.0))
    (other,) = edit(pipeline, [source], [RED], [BLUE], FlowEdit(source_guidance=3.0))
    assert difference(scaled, want) > 0.5 and difference(other, want) > 0.5


def test_more_steps_change_more(pipeline):
    source = clip(5)
    want = pipeline.decode(pipeline.encode([source], torch.float32), torch.float32)[0]
    far = [difference(edit(pipeline, [source], [RED], [BLUE], FlowEdit(n_max=n))[0], want) for n in (1, 4)]
    assert far[0] < far[1]


def test_an_edit_does_not_depend_on_what_it_is_made_with(pipeline):
    sources, how = [clip(5), clip(5, 32, 16, seed=1)], FlowEdit(n_min=1, n_avg=2)
    both = edit(pipeline, sources, [RED, RED], [BLUE, BLUE], how, seed=2)
    (alone,) = edit(pipeline, sources[1:], [RED], [BLUE], how, seed=3)
    assert (alone.int() - both[1].int()).abs().max() <= 1


def test_known_parts_stay(pipeline):
    (latent,) = pipeline.encode([clip(9)], torch.float32)
    known = torch.zeros(latent.shape[1:], dtype=torch.bool)
    known[0], known[1, :2] = True, True  # a frame, and a row of tokens
    grid = tuple(latent.shape[1:])
    words = [Request(prompt=RED, grid=grid)], [Request(prompt=BLUE, grid=grid, given=latent, known=known)]
    sampling = replace(SAMPLING, condition="levels")
    (made,) = flow_edited(pipeline, [latent], *words, FlowEdit(n_min=1), sampling)
    assert torch.equal(made[:, known], latent[:, known]) and (made[:, ~known] != latent[:, ~known]).any()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"how": FlowEdit(n_max=5)}, "n_max 5 of 4 steps"),
        ({"how": FlowEdit(n_max=2, n_min=2)}, "n_min 2 leaves none of the n_max 2 steps"),
        ({"solver": "heun"}, "method flow takes Euler's steps, not those of solver 'heun'"),
    ],
)
def test_what_cannot_be_done_is_said(how, message, pipeline):
    with pytest.raises(UserError, match=message):
        edit(pipeline, [clip(1)], [RED], [BLUE], **how)


def test_parameters_are_of_the_method(pipeline):
    with pytest.raises(UserError, match="are of method flow, not of sdedit"):
        edits.edit(pipeline, [clip(1)], [RED], [BLUE], "sdedit", flow=FlowEdit())
    with pytest.raises(UserError, match="strength 0.5 is of the other methods"):
        edits.edit(pipeline, [clip(1)], [RED], [BLUE], "flow", 0.5)
    with pytest.raises(UserError, match="n_avg=0"):
        FlowEdit(n_avg=0)
