"""Inversion finds the noise from which the Euler solver makes the data again."""

import pytest
import torch
from gaussian_mixture import three_in_a_plane
from torch import Tensor

from latentvid.diffusion.guidance import Guidance
from latentvid.diffusion.inversion import invert
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.diffusion.solvers import solve
from latentvid.errors import UserError
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling

MIXTURE = three_in_a_plane()
CASES = [("rectified_flow", "flow", {}), ("rectified_flow", "x", {}), ("cosine", "v", {}), ("cosine", "x", {})]
CASES += [("ddpm", "eps", {}), ("ddpm", "v", {"zero_terminal_snr": True}), ("ddpm", "x", {"zero_terminal_snr": True})]
CASES += [("edm", "edm", {"spacing": "karras"})]
EACH = pytest.mark.parametrize(("path", "target", "options"), CASES)


def rebuilt(scheduler, predict, x: Tensor, levels: Tensor, layout: Packed, iterations: int) -> tuple[Tensor, Tensor]:
    """(error [T] of what the noise found makes, that noise)."""
    found = invert(scheduler, predict, x, levels, layout, iterations=iterations)
    assert found.moved.shape == (len(levels) - 1, layout.segments) and found.moved.isfinite().all()
    again = solve(scheduler, predict, found.z, levels, layout)
    return (again - x).square().mean(1).sqrt(), found.z


@EACH
def test_points_of_a_mixture_come_back_the_better_the_more_steps_and_iterations(path, target, options):
    scheduler, count = LatentVideoScheduler(path, target, **options), 300
    layout = Packed.of([(1, 1, 1)] * count)  # each point is a sample, with levels and iterations of its own
    x = MIXTURE.sample(count, torch.Generator().manual_seed(0)).float()
    predict = MIXTURE.predictor(scheduler, layout)
    plain, exact = {}, {}
    for steps in (10, 40):
        levels = scheduler.levels(steps)[:, None].expand(-1, count)
        plain[steps], _ = rebuilt(scheduler, predict, x, levels, layout, 0)
        exact[steps], noise = rebuilt(scheduler, predict, x, levels, layout, 8)
        assert exact[steps].median() < plain[steps].median() / 15
    assert plain[40].median() < plain[10].median() / 2
    assert exact[40].median() < 1e-5 and exact[40].quantile(0.98) < 1e-3  # where modes part, steps may fold
    assert (noise.mean(0).abs().max(), (noise.T.cov() - torch.eye(2)).abs().max()) < (0.2, 0.3)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_from_noise_alone_stay_finite(steps):
    for path, target, options in CASES:
        scheduler, layout = LatentVideoScheduler(path, target, **options), Packed.of([(1, 1, 20)])
        predict = MIXTURE.predictor(scheduler, layout)
        found = invert(scheduler, predict, torch.randn(20, 2), scheduler.levels(steps)[:, None], layout)
        assert found.z.isfinite().all()


def tiny(scheduler: LatentVideoScheduler, layout: Packed):
    """A small random transformer, and its predictions for a pack."""
    model = VideoDiT(latent_channels=3, patch=1, width=32, depth=2, heads=2, text_width=8).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    text = torch.randn(2 * layout.segments, 8)
    return lambda z, t: model(z, t, text, layout, Packed.of_lengths([2] * layout.segments))


@EACH
@torch.no_grad()
def test_a_network_is_inverted_and_given_rows_stay(path, target, options):
    scheduler, layout = LatentVideoScheduler(path, target, **options), Packed.of([(3, 2, 2), (2, 2, 1)])
    predict, x = tiny(scheduler, layout), torch.randn(16, 3) * 0.3
    levels = scheduler.levels(20)[:, None] * torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    if target in ("x", "eps"):  # a random network does not say what it is given, as a trained one does
        raw, part = predict, {"x": 1.0, "eps": 0.02}[target]
        predict = lambda z, t: z + part * raw(z, t)  # noqa: E731
    plain, _ = rebuilt(scheduler, predict, x, levels, layout, 0)
    exact, z = rebuilt(scheduler, predict, x, levels, layout, 6)
    assert exact.max() < plain.max() / 10 and exact.max() < 5e-3
    assert torch.equal(z[:4], x[:4]) and (z[4:] != x[4:]).any()


def test_impossible_iterations_are_named():
    layout = Packed.of([(1, 1, 2)])
    with pytest.raises(ValueError, match="-1 iterations: give 0"):
        invert(LatentVideoScheduler(), None, torch.zeros(2, 2), torch.ones(2, 1), layout, iterations=-1)


# ------------------------------------------------------------------------------------------------------- the pipeline


def test_the_pipeline_samples_what_it_inverted(tiny_pipeline):
    pipeline = load_pipeline(tiny_pipeline, "cpu")
    grids = [pipeline.latent_grid(5, 32, 32), pipeline.latent_grid(1, 32, 48)]
    requests = [
        Request(prompt="a red 7 moves up", grid=grid, level=level)
        for grid, level in zip(grids, (1.0, 0.6), strict=True)
    ]
    sampling = Sampling(steps=12, guidance=Guidance(), progress=False)
    latents = pipeline.sample([Request(prompt=r.prompt, grid=r.grid, seed=5) for r in requests], sampling)
    wrong = []
    for iterations in (0, 6):
        noised = pipeline.invert(latents, requests, sampling, iterations)
        assert [z.shape for z in noised] == [z.shape for z in latents]
        starts = [
            Request(prompt=r.prompt, grid=r.grid, level=r.level, start=z) for r, z in zip(requests, noised, strict=True)
        ]
        again = pipeline.sample(starts, sampling)
        wrong.append(max(float((a - b).square().mean().sqrt()) for a, b in zip(latents, again, strict=True)))
    assert wrong[1] < wrong[0] / 5
    alone = pipeline.invert(latents[1:], requests[1:], sampling, 6)[0]
    torch.testing.assert_close(alone, noised[1], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_inverted_is_said(tiny_pipeline):
    pipeline = load_pipeline(tiny_pipeline, "cpu")
    grid = pipeline.latent_grid(5, 32, 32)
    z = torch.zeros(pipeline.transformer.config.latent_channels, *grid)
    with pytest.raises(UserError, match="inversion is that of solver 'euler', not 'heun'"):
        pipeline.invert([z], [Request(prompt="", grid=grid)], Sampling(solver="heun", progress=False))
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[0] = True
    given = Request(prompt="", grid=grid, given=z, known=mask)
    with pytest.raises(UserError, match="inversion takes whole latent frames as given, by noise levels"):
        pipeline.invert([z], [given], Sampling(condition="replacement", progress=False))
