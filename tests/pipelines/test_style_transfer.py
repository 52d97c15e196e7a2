"""Style transfer through a pipeline: what the picture does, and what stays."""

from dataclasses import replace

import pytest
import torch

from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.models.style import StyleAligned
from latentvid.packing import patchify
from latentvid.pipelines import style as styles
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.references import Role

SAMPLING = Sampling(steps=3, progress=False, guidance=Guidance(scale=2.0), precision=torch.float32)
RED = "a red 7 moves up"


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline) -> LatentVideoPipeline:
    return load_pipeline(tiny_pipeline, "cpu")


@pytest.fixture
def trained(tiny_pipeline) -> LatentVideoPipeline:
    found = load_pipeline(tiny_pipeline, "cpu")
    found.register_to_config(references={"style": Role(place="beside", max_area=1024, max_frames=1).as_json()})
    return found


def clip(frames: int, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=noise)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.int() - b.int()).abs().float().mean().item()


def test_a_style_does_not_depend_on_what_it_is_made_with(pipeline):
    clips, pictures = [clip(5), clip(6, 32, 16, seed=1)], [clip(1, seed=2)[0], clip(1, 32, 16, seed=3)[0]]
    both = styles.style(pipeline, clips, pictures, [RED, ""], seed=2, sampling=SAMPLING)
    (alone,) = styles.style(pipeline, clips[1:], pictures[1:], [""], seed=3, sampling=SAMPLING)
    assert [len(x) for x in both] == [5, 6] and (alone.int() - both[1].int()).abs().max() <= 1
    (other,) = styles.style(pipeline, clips[1:], pictures[:1], [""], seed=3, sampling=SAMPLING)
    assert difference(other, alone) > 1


def test_at_each_level_the_network_sees_the_picture_as_its_inversion_had_it(pipeline):
    seen, source, picture = [], clip(5), clip(1, seed=2)[0]
    hook = pipeline.transformer.register_forward_pre_hook(lambda module, words: seen.append(words[0]))
    styles.style(pipeline, [source], [picture], [""], strength=0.6, sampling=SAMPLING)
    hook.remove()
    assert len(seen) == 6  # three steps of inversion, three of sampling; nothing is said that could guide
    (z,) = pipeline.encode([picture[None]], torch.float32)
    words = [Request(prompt="", grid=tuple(z.shape[1:]), level=0.6)]
    passed = styles.inverted(pipeline, [z], words, replace(SAMPLING, solver="euler"))
    assert len(passed) == 4 and torch.equal(passed[-1][0], z)
    for tokens, latents in zip(seen[3:], passed, strict=False):
        want, _ = patchify(latents, pipeline.transformer.patch)
        torch.testing.assert_close(tokens[-len(want) :], want, rtol=1e-4, atol=1e-4)


def test_the_clips_noise_has_the_pictures_moments():
    z, of = torch.randn(3, 4, 5, 6), 2 * torch.randn(3, 1, 5, 6) + 1
    found = styles.with_moments(z, of)
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(found, (1, 2, 3)), moment(of, (1, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(styles.with_moments(z, z), z, rtol=1e-4, atol=1e-5)


def test_a_model_of_the_role_is_shown_the_picture(trained, monkeypatch):
    asked, picture = [], clip(1, seed=2)[0]
    sample = LatentVideoPipeline.sample
    monkeypatch.setattr(LatentVideoPipeline, "sample", lambda self, r, *more: asked.append(r) or sample(self, r, *more))
    monkeypatch.setattr(StyleAligned, "acting", None)  # attention is not shared
    (made,) = styles.style(trained, [clip(5)], [picture], [RED], sampling=SAMPLING)
    ((request,),) = asked
    (want,) = trained.encode([picture[None]], torch.float32)
    torch.testing.assert_close(request.references["style"][0], want)
    assert request.level == 0.8 and made.shape == (5, 16, 24, 3)
    with pytest.raises(UserError, match="leave --style-scale and --style-prompt out"):
        styles.style(trained, [clip(5)], [picture], [RED], scale=2.0, sampling=SAMPLING)


def test_what_is_masked_out_stays(pipeline):
    source, mask = clip(5), torch.zeros(16, 24, dtype=torch.bool)
    mask[:8] = True
    (made,) = styles.style(pipeline, [source], [clip(1, seed=2)[0]], [RED], masks=[mask], sampling=SAMPLING)
    assert torch.equal(made[:, 8:], source[:, 8:]) and difference(made[:, :8], source[:, :8]) > 5


def test_other_solvers_are_refused(pipeline):
    with pytest.raises(UserError, match="solver 'euler', not 'heun'"):
        styles.check_style(pipeline, replace(SAMPLING, solver="heun"))
