"""References with noise in sampling: what is added is what is told, solvers leave it, and levels that are refused."""

import json
import shutil

import pytest
import torch

from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.packing import patchify
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.rng import generator

LOW = {"place": "aligned", "degrade": [{"kind": "resize", "amount": [2, 2]}], "noise": [0.1, 0.5]}
ROLES = {"low": LOW, "other": {"place": "beside"}}
RED = "a red 7 moves up"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, tiny_pipeline) -> LatentVideoPipeline:
    """`tiny_pipeline`, lively, as one that was shown itself at half its size."""
    folder = shutil.copytree(tiny_pipeline, tmp_path_factory.mktemp("low") / "pipeline")
    index = json.loads((folder / "model_index.json").read_text()) | {"references": ROLES}
    (folder / "model_index.json").write_text(json.dumps(index))
    return load_pipeline(folder, "cpu")


def latent(seed: int, *grid: int) -> torch.Tensor:
    return torch.randn(4, *grid, generator=torch.Generator().manual_seed(seed))


def requests() -> list[Request]:
    shown = {"low": [latent(1, 2, 4, 4)], "other": [latent(2, 1, 4, 4)]}
    return [
        Request(prompt=RED, grid=(2, 8, 8), seed=1, references=shown),
        Request(prompt=RED, grid=(2, 8, 8), seed=2),
        Request(prompt=RED, grid=(2, 8, 8), seed=3, references={"low": [latent(3, 2, 4, 4)]}),
    ]


@torch.no_grad()
def test_the_noise_that_is_added_is_what_the_network_is_told(pipeline, monkeypatch):
    asked = {"guidance": Guidance(scale=2.0), "progress": False, "reference_noise": 0.3}
    batch, predict = pipeline._prepare(requests(), Sampling(**asked))
    told = []
    forward = pipeline.transformer.forward
    monkeypatch.setattr(
        pipeline.transformer, "forward", lambda z, t, *a, **k: (told.append(t), forward(z, t, *a, **k))[1]
    )
    t = batch.levels[1]
    predict(batch.z, t)
    own = t[0]
    want = [own, own, 0.3, 0.3, 0.0, own, own, own, own, 0.3, 0.3]  # frames of a sample, then of its references
    torch.testing.assert_close(told[0], torch.tensor([float(x) for x in want] * 2))
    assert not batch.levels[:, [2, 3, 4, 9, 10]].any()  # no solver moves them
    parts = batch.z.split(batch.layout.lengths)
    for place, name in ((0, "low"), (2, "low")):
        (clean,) = requests()[place].references[name]
        tokens = patchify([clean], 2)[0]
        noise = torch.randn(tokens.shape, generator=generator(requests()[place].seed, 0, "reference-noise"))
        torch.testing.assert_close(parts[place][32:40], 0.7 * tokens + 0.3 * noise)
    assert torch.equal(parts[0][40:], patchify([latent(2, 1, 4, 4)], 2)[0])
    batch, _ = pipeline._prepare(requests(), Sampling(progress=False))
    assert batch.noisy.max() == torch.tensor(0.1)  # the least of training


@pytest.mark.parametrize("solver", ["heun", "unipc", "ddpm"])
def test_alone_equals_packed_and_levels_change_what_is_made(pipeline, solver):
    sampling = Sampling(steps=3, solver=solver, guidance=Guidance(scale=2.0, rescale=0.5), progress=False)
    together = pipeline.sample(requests(), sampling)
    for request, made in zip(requests(), together, strict=True):
        torch.testing.assert_close(made, pipeline.sample([request], sampling)[0], rtol=1e-3, atol=1e-3)
    more = pipeline.sample(requests()[:1], Sampling(steps=3, progress=False, reference_noise=0.5))[0]
    less = pipeline.sample(requests()[:1], Sampling(steps=3, progress=False, reference_noise=0.1))[0]
    assert (more - less).abs().max() > 1e-3


def test_levels_that_it_was_not_trained_with_are_refused(pipeline, tiny_pipeline):
    with pytest.raises(UserError, match="reference noise 0.6: the model was trained with 0.1 to 0.5 in low"):
        pipeline.sample(requests(), Sampling(reference_noise=0.6))
    with pytest.raises(UserError, match="the model was trained without noise in references"):
        plain = load_pipeline(tiny_pipeline, "cpu")
        plain.sample([Request(prompt=RED, grid=(2, 8, 8))], Sampling(reference_noise=0.1))
