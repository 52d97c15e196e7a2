"""LTX-Video sampled by our pipeline: latents of 10 steps are those of diffusers' own for the same noise."""

import pytest
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.ltx import pipeline_ltx_condition
from test_open_video import SIZES, compare, image, loaded, picture, sampling, theirs_of
from torch import Tensor

from latentvid.pipelines.open_video import OpenVideoPipeline

TOKENS = {"into": "C f h w -> 1 (f h w) C", "back": "1 (f h w) C -> C f h w"}
RATES = [12.0, 0.0]  # frames a second; none is the pipelines' 25
ASKED = [{"fps": rate} for rate in RATES]


def rate_of(i: int) -> float:
    return RATES[i] or 25


def begun(ours: OpenVideoPipeline) -> list[dict[str, Tensor]]:
    return ours.begin_with([picture(0), picture(1)], [ours.latent_grid(*size) for size in SIZES])


def test_text_to_video_at_two_frame_rates(repository):
    ours, theirs = loaded(repository("ltx"))
    assert ours.transformer.strides == (2, 8) and ours.scheduler.config.terminal == 0.1
    run = theirs_of(theirs, **TOKENS, guidance_scale=3.0, frame_rate=rate_of)
    compare(ours, run, ASKED, sampling(3.0))


@pytest.mark.parametrize("pictures", [False, True])
def test_the_condition_pipeline(repository, pictures, monkeypatch):
    """It draws its noise itself, and the picture's latent from the posterior, of which ours takes the mean."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    ours, theirs = loaded(repository("ltx_condition"))
    assert ours.transformer.causal_positions and ours.scheduler.config.spacing == "linear_quadratic"
    more = {"image": lambda i: image(picture(i))} if pictures else {}
    run = condition_run(theirs, monkeypatch, **more)
    asked = begun(ours) if pictures else [{}, {}]
    compare(ours, run, [{**a, **b} for a, b in zip(asked, ASKED, strict=True)], sampling(3.0))


def condition_run(theirs: DiffusionPipeline, monkeypatch, **more):
    run = theirs_of(
        theirs, back="1 C f h w -> C f h w", guidance_scale=3.0, frame_rate=rate_of, image_cond_noise_scale=0.0, **more
    )

    def with_noise(i: int, latents: Tensor) -> Tensor:
        monkeypatch.setattr(pipeline_ltx_condition, "randn_tensor", lambda *shape, **options: latents[None].clone())
        return run(i, latents)

    return with_noise


def test_ltx2s_video_where_sound_is_isolated(repository):
    """Its pipeline, told to isolate the halves in its one pass, and without its other kinds of guidance; what it shows
    is not normalised."""
    ours, theirs = loaded(repository("ltx2"))
    sizes = [(9, 64, 96), (17, 64, 64)]
    inner = theirs.transformer.forward
    theirs.transformer.forward = lambda **given: inner(**given | {"isolate_modalities": True})
    scales = dict(guidance_scale=3.0, stg_scale=0.0, modality_scale=1.0, guidance_rescale=0.0)
    scales |= {f"audio_{name}": value for name, value in scales.items()}
    shape = {"into": TOKENS["into"], "back": "1 C f h w -> C f h w"}
    run = theirs_of(theirs, **shape, **scales, sizes=sizes, frame_rate=lambda i: RATES[i] or 24.0)
    compare(ours, lambda i, z: ours.codec.normalise(run(i, z)[None])[0], ASKED, sampling(3.0), sizes)
