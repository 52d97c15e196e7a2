"""EDM preconditioning in training and in the pipeline that is exported."""

import pytest
import torch
from small_tasks import draws_of, lively

from latentvid.diffusion.solvers import SOLVERS
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.training.stages.dit.task import DitTask

CPU = torch.device("cpu")
EDM = ("scheduler.path=edm", "scheduler.target=edm", "scheduler.spacing=karras", "scheduler.sigma_data=0.5")
DRAWS = ("timesteps.kind=log_normal", "timesteps.mean=-1.2", "timesteps.std=1.2", "given.first=0.5")


@pytest.fixture
def task(dit_config, tmp_path) -> DitTask:
    task = DitTask(dit_config(tmp_path / "run", *EDM, *DRAWS), CPU)
    lively(task.model)
    return task


def test_the_loss_is_that_of_the_paper_written_out(task):
    """lambda(sigma) |D(x + sigma n; sigma) - x|^2 (Karras et al. 2022, eq. 2 and 7, table 1); given frames are told as
    such of the least noise."""
    pack, data = task.prepare(task.make_pack(draws_of(task, 6))), 0.5
    assert (pack.timestep == 0).any() and (pack.timestep > 0).any()
    sigma = (80.0 * pack.timestep.double() ** 7)[pack.layout.frame][:, None]  # [T,1]
    y, root = pack.clean + sigma * pack.noise, (sigma**2 + data**2).sqrt()
    told = (80.0 * pack.timestep.double() ** 7).clamp_min(0.002).log() / 4
    layouts = pack.layout, pack.text_layout
    raw = task.model((y / root).float(), told.float(), pack.text, *layouts, fps=pack.rates).double()
    clean = data**2 / root**2 * y + sigma * data / root * raw
    weight = (root / (sigma * data).clamp_min(1e-12)).square()
    error = (weight * (clean - pack.clean).square()).mean(1)
    with torch.no_grad():
        losses, _ = task.loss(task.model, pack, 0)
    begin = 0
    for length, loss in zip(pack.layout.lengths, losses, strict=True):
        own = slice(begin, begin + length)
        counts = (sigma[own, 0] > 0).nonzero()[:, 0]
        torch.testing.assert_close(loss.double(), error[own][counts].mean(), rtol=1e-3, atol=1e-5)
        begin += length


def test_the_exported_pipeline_samples_by_every_solver_and_keeps_given_frames(task, tmp_path):
    task.export(task.model, tmp_path / "pipeline")
    pipeline = load_pipeline(tmp_path / "pipeline", device="cpu")
    assert pipeline.scheduler.config.path == pipeline.scheduler.config.target == "edm"
    given = torch.randn(4, 2, 8, 8)
    known = torch.tensor([True, False])[:, None, None]
    request = Request(prompt="a digit", grid=(2, 8, 8), given=given, known=known)
    for solver in SOLVERS:
        sampling = Sampling(steps=4, solver=solver, progress=False, precision=torch.float32)
        (latent,) = pipeline.sample([request], sampling)
        assert torch.equal(latent[:, 0], given[:, 0]) and latent.isfinite().all() and latent[:, 1].std() < 5
