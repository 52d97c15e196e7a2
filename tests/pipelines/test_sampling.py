"""Requests: what is known stays, what is unknown is sampled, alone as in a pack."""

import pytest
import torch

from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling

RED, BLUE = "a red 7 moves up", "a blue three bounces down"
GRID = (3, 8, 8)
CONDITIONS = ("levels", "replacement", "reconstruction")


@pytest.fixture
def pipeline(tiny_pipeline) -> LatentVideoPipeline:
    """As if trained with given frames."""
    pipeline = load_pipeline(tiny_pipeline, "cpu")
    pipeline.register_to_config(given=("plain", "first"))
    return pipeline


def latent(seed: int, grid=GRID) -> torch.Tensor:
    return torch.randn(4, *grid, generator=torch.Generator().manual_seed(seed))


def frames(*given: int, count: int = GRID[0]) -> torch.Tensor:
    known = torch.zeros(count, 1, 1, dtype=torch.bool)
    known[list(given)] = True
    return known


def area(grid=GRID) -> torch.Tensor:
    known = torch.zeros(grid, dtype=torch.bool)
    known[:, :, : grid[2] // 2] = True
    return known


def sample(pipeline, *requests: Request, **options) -> list[torch.Tensor]:
    return pipeline.sample(requests, Sampling(progress=False, **options))


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("solver", ["euler", "ddpm"])
def test_what_is_known_stays_and_the_rest_follows_it(pipeline, condition, solver):
    options = dict(condition=condition, solver=solver, guidance=Guidance(scale=2.0))
    for known in (frames(0), frames(0, 2), area()):
        made = [
            sample(pipeline, Request(prompt=RED, grid=GRID, given=latent(i), known=known), **options)[0] for i in (1, 2)
        ]
        unknown = ~known.expand(GRID)
        for i, z in enumerate(made, 1):
            torch.testing.assert_close(z[:, ~unknown], latent(i)[:, ~unknown], rtol=0, atol=0)
        assert (made[0] - made[1])[:, unknown].abs().mean() > 1e-3  # it does depend on what is given


@pytest.mark.parametrize("condition", CONDITIONS)
def test_alone_equals_packed(pipeline, condition):
    small = (2, 4, 8)
    requests = [
        Request(prompt=RED, grid=GRID, seed=1, given=latent(1), known=frames(0)),
        Request(prompt=BLUE, grid=small, seed=2),
        Request(prompt=BLUE, grid=GRID, seed=3, given=latent(3), known=area(), negative_prompt=RED),
        Request(prompt=RED, grid=small, seed=4, start=latent(4, small), level=0.5),
    ]
    options = dict(condition=condition, guidance=Guidance(scale=3.0, rescale=0.7, interval=(0.2, 0.9)), steps=4)
    together = sample(pipeline, *requests, **options)
    for request, z in zip(requests, together, strict=True):
        torch.testing.assert_close(z, sample(pipeline, request, **options)[0], rtol=1e-5, atol=2e-5)


def test_a_token_is_known_where_all_of_its_positions_are(pipeline):
    known = torch.zeros(GRID, dtype=torch.bool)
    known[:, :, :3] = True  # tokens are 2 x 2: the second column of tokens is known by half
    z = sample(pipeline, Request(prompt=RED, grid=GRID, given=latent(1), known=known), condition="replacement")[0]
    assert torch.equal(z[..., :2], latent(1)[..., :2])
    assert not torch.equal(z[..., 2], latent(1)[..., 2])


def test_a_start_at_a_low_level_changes_little(pipeline):
    start = latent(5)
    far = [
        (sample(pipeline, Request(prompt=RED, grid=GRID, start=start, level=level))[0] - start).square().mean()
        for level in (0.01, 0.3, 1.0)
    ]
    assert 0 < far[0] < 0.1 * min(far[1:])


def test_the_weight_of_reconstruction_guidance_is_the_one_asked_for(pipeline):
    request = Request(prompt=RED, grid=GRID, given=latent(1), known=frames(0))
    none, much = (
        sample(pipeline, request, condition="reconstruction", reconstruction_weight=weight)[0] for weight in (0.0, 30.0)
    )
    put_back = sample(pipeline, request, condition="replacement")[0]
    torch.testing.assert_close(none, put_back, rtol=1e-4, atol=1e-4)  # without a weight nothing guides
    assert not torch.allclose(much, put_back, atol=1e-2)


def test_guidance_outside_its_interval_is_none(pipeline):
    request = Request(prompt=RED, grid=GRID)
    plain = sample(pipeline, request, guidance=Guidance(scale=1.0))[0]
    late = sample(pipeline, request, guidance=Guidance(scale=5.0, interval=(0.0, 0.01)))[0]
    full = sample(pipeline, request, guidance=Guidance(scale=5.0))[0]
    assert torch.equal(late, plain) and not torch.allclose(full, plain, atol=1e-2)


def test_first_steps_without_velocity_leave_the_noise(pipeline):
    """With all but the last of 4 steps still, that one starts from the noise at the third level."""
    request = Request(prompt=RED, grid=GRID)
    noise = sample(pipeline, Request(prompt=RED, grid=GRID, level=0.25), steps=1)[0]
    still = sample(pipeline, request, steps=4, guidance=Guidance(scale=pipeline.config.guidance, zero_init=3))[0]
    torch.testing.assert_close(still, noise)


def test_a_model_without_given_frames_is_conditioned_in_another_way(pipeline):
    pipeline.register_to_config(given=("plain",))
    request = Request(prompt=RED, grid=GRID, given=latent(1), known=frames(0))
    with pytest.raises(UserError, match="trained without given frames .* 'reconstruction' or 'replacement'"):
        sample(pipeline, request, condition="levels")
    assert torch.equal(sample(pipeline, request)[0], sample(pipeline, request, condition="reconstruction")[0])


@pytest.mark.parametrize(
    ("request_", "options", "message"),
    [
        (dict(given=latent(1, (3, 8, 6)), known=frames(0)), {}, r"given: a latent \[4, 3, 8, 6\] for .* 3 x 8 x 8"),
        (dict(given=latent(1), known=frames(0, count=4)), {}, r"known is \[4, 1, 1\], the latent 3 x 8 x 8"),
        (dict(given=latent(1), known=frames(0, 1, 2)), {}, "nothing is left to sample"),
        (dict(known=frames(0)), {}, "no latent to keep them from"),
        ({}, dict(solver="rk4"), "solver 'rk4': one of euler, ddpm"),
        ({}, dict(guidance=Guidance(zero_init=3, scale=2.0), steps=3), "zero_init 3: must be fewer than the 3 steps"),
    ],
)
def test_bad_requests_are_said(pipeline, request_, options, message):
    with pytest.raises(UserError, match=message):
        sample(pipeline, Request(prompt=RED, grid=GRID, **request_), **options)


def test_zero_init_is_for_rectified_flow(pipeline):
    from latentvid.diffusion.scheduler import LatentVideoScheduler

    pipeline.register_modules(scheduler=LatentVideoScheduler("ddpm", "v"))
    with pytest.raises(UserError, match="zero_init needs path 'rectified_flow'; this model's is 'ddpm'"):
        sample(pipeline, Request(prompt=RED, grid=GRID), guidance=Guidance(zero_init=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(interval=(0.5, 0.5)), "0 <= low < high <= 1"),
        (dict(rescale=1.5), "guidance_rescale=1.5: must"),
        (dict(zero_init=-1), "zero_init=-1: must"),
    ],
)
def test_impossible_guidance_is_said(options, message):
    with pytest.raises(UserError, match=message):
        Guidance(**options)
