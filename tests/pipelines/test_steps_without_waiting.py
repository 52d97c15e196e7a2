"""No step of sampling on a GPU makes the host wait: counted on CUDA tensors without storage."""

import pytest
import torch
from host_reads import moved, on_fake_cuda

from latentvid.diffusion.guidance import Guidance
from latentvid.models import streaming
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.sampling import Batch, Request, Sampling

GRID = (2, 8, 8)
GUIDED = Guidance(scale=3.0, rescale=0.5, first=1.5, interval=(0.1, 0.8), zero_init=1)


def waits_of(folder, steps, attention="full", solver="euler", guidance=GUIDED, given=None):
    """Those of a run of so many steps on two clips, the first with its first frame given."""
    pipeline = LatentVideoPipeline.from_pretrained(folder)
    if attention != "full":
        pipeline.transformer.register_to_config(attention=attention)
    frame, known = torch.zeros(4, *GRID), torch.tensor([True, False])[:, None, None]
    more = {} if given is None else {"given": frame, "known": known & torch.ones(GRID, dtype=torch.bool)}
    requests = [Request(prompt="a", grid=GRID, **more), Request(prompt="b", grid=(1, 4, 4), seed=1)]
    sampling = Sampling(steps=steps, solver=solver, guidance=guidance, progress=False, condition=given, large=True)
    with on_fake_cuda() as waits:
        for module in (pipeline.transformer, pipeline.text_encoder):
            moved(module)
        pipeline.vae = None
        waits.clear()
        z = pipeline.sample(requests, sampling)
    assert [each.device.type for each in z] == ["cuda", "cuda"]
    return waits


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"attention": "causal", "solver": "ddpm"},
        {"attention": "factorised", "solver": "heun", "given": "levels", "guidance": Guidance(scale=3.0)},
        {"solver": "unipc", "given": "replacement", "guidance": Guidance(scale=1.0)},
    ],
)
def test_more_steps_wait_no_more_often(cuda_without_a_driver, given_pipeline, how):
    few, many = (waits_of(given_pipeline, steps, **how) for steps in (3, 5))
    assert (few.reads, few.copies) == (many.reads, many.copies)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_compute_in_their_type_on_a_gpu(cuda_without_a_driver, tiny_pipeline, monkeypatch, dtype):
    monkeypatch.setattr(streaming, "choose_cut", lambda side, b, frames, h, w, _: streaming.Cut(frames, 0, b, h, w))
    pipeline = LatentVideoPipeline.from_pretrained(tiny_pipeline, torch_dtype=dtype)
    request = Request(prompt="a", grid=GRID)
    with on_fake_cuda() as waits:
        for module in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
            moved(module)
        (clip,) = pipeline.decode(pipeline.sample([request], Sampling(steps=2, progress=False, large=True)))
    assert clip.shape == (5, 32, 32, 3) and clip.dtype == torch.uint8
    assert {found for _, found in waits.products} == {dtype}


def test_levels_of_a_step_are_on_the_host(tiny_pipeline):
    """A row of the levels by its place in memory; what is no row is fetched."""
    scheduler = LatentVideoPipeline.from_pretrained(tiny_pipeline).scheduler
    requests = [Request(prompt="a", grid=GRID), Request(prompt="b", grid=(1, 4, 4), seed=1)]
    batch = Batch.of(requests, scheduler, (1, 2, 2), 4, 5, False, torch.device("cpu"))
    batch.levels = batch.levels.clone()  # as of another device
    for i, row in enumerate(batch.levels):
        assert torch.equal(batch.on_host(batch.levels[i]), row)
        assert batch.on_host(batch.levels[i]).untyped_storage()._cdata == batch.host_levels.untyped_storage()._cdata
    assert torch.equal(batch.on_host(batch.levels[2] / 2), batch.levels[2] / 2)
