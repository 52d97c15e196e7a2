"""The noise levels that a model is guided at by default: in sampling, and not where a clip is changed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.diffusion.distillation.guided import with_guidance
from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.packing import Packed
from latentvid.pipelines import edits
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.prompts import _settings
from latentvid.pipelines.sampling import Sampling
from latentvid.training.stages.dit.distill.teacher import TeacherFacts
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

ROOT = Path(__file__).resolve().parents[2]
OWN = (0.6, 1.0)
RED, BLUE = "a red 7 moves up", "a blue three"


@pytest.fixture(scope="module")
def plain(given_pipeline) -> LatentVideoPipeline:
    return load_pipeline(given_pipeline, "cpu")


@pytest.fixture(scope="module")
def folder(given_pipeline, tmp_path_factory):
    """Of the same model, which is guided at high levels alone."""
    pipeline, folder = load_pipeline(given_pipeline, "cpu"), tmp_path_factory.mktemp("own")
    pipeline.register_to_config(guidance_interval=list(OWN))
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own(folder) -> LatentVideoPipeline:
    return load_pipeline(folder, "cpu")


def latent(pipeline, interval=None, scale=6.0, **words) -> torch.Tensor:
    sampling = Sampling(steps=4, progress=False, guidance=Guidance(scale=scale, interval=interval))
    words = {"num_frames": 5, "height": 16, "width": 16, "output_type": "latent", "seed": 1} | words
    return pipeline(RED, sampling=sampling, **words).frames[0]


def test_a_model_is_guided_at_its_own_levels_unless_others_are_asked_for(plain, own):
    assert torch.equal(latent(own), latent(plain, OWN)) and not torch.allclose(latent(own), latent(plain), atol=1e-4)
    assert torch.equal(latent(own, (0.0, 1.0)), latent(plain)) and torch.equal(
        latent(own, (0.0, 0.5)), latent(plain, (0.0, 0.5))
    )
    assert torch.equal(latent(own, guidance_scale=9.0), latent(plain, OWN, scale=9.0))
    said = [_settings(p, Sampling())["guidance"]["interval"] for p in (plain, own)]
    assert said == [None, list(OWN)]  # clips of the one do not pass for those of the other


@pytest.mark.parametrize("method", ["inversion", "sdedit", "flow"])
def test_changing_a_clip_spreads_the_guidance_over_all_levels(plain, own, method):
    source = torch.randint(0, 256, (5, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(steps=4, progress=False, precision=torch.float32)

    def edit(pipeline, interval=None, scale=3.0):
        asked = replace(sampling, guidance=None if scale is None else Guidance(scale=scale, interval=interval))
        return edits.edit(pipeline, [source], [RED], [BLUE], method, sampling=asked)[0]

    assert torch.equal(edit(own), edit(plain)) and torch.equal(edit(own, (0.0, 0.3)), edit(plain, (0.0, 0.3)))
    assert not torch.equal(edit(own), edit(own, (0.9, 1.0)))
    assert own.config.guidance == 3.0 and torch.equal(edit(own, scale=None), edit(plain, scale=1 + 2 * 0.4))


def test_a_student_is_taught_what_its_teacher_is_guided_at(folder, given_pipeline):
    assert TeacherFacts.read(folder).interval == OWN and TeacherFacts.read(given_pipeline).interval is None
    layout = Packed.of([(2, 1, 1), (1, 1, 1)])
    one, other, scale = torch.ones(3, 2), torch.zeros(3, 2), torch.tensor([3.0, 5.0])
    t = torch.tensor([0.6, 0.59, 1.0])

    def of(interval):
        return with_guidance(lambda z, t: one, lambda z, t: other, scale, layout, interval)(one, t)[:, 0].tolist()

    assert of(OWN) == [3.0, 1.0, 5.0] and of(None) == [3.0, 3.0, 5.0]


def test_wrong_levels_are_refused(plain, dit_config, tmp_path):
    with pytest.raises(UserError, match="guidance_interval is .0.9, 0.2.: give the lower noise level first"):
        dit_config(tmp_path, "inference.guidance_interval=[0.9, 0.2]")
    with pytest.raises(UserError, match="guidance_interval.1.=1.5"):
        dit_config(tmp_path, "inference.guidance_interval=[0.5, 1.5]")
    with pytest.raises(UserError, match="has no place in a published model's repository"):
        load_config(DitConfig, ROOT / "configs/open/wan_lora.yaml", ["inference.guidance_interval=[0.5, 1]"])
    with pytest.raises(UserError, match="guidance interval 0.9 to 0.2"):
        LatentVideoPipeline(**plain.components, guidance_interval=[0.9, 0.2])


def test_a_run_leaves_its_levels_in_the_pipeline(dit_config, tmp_path):
    config = dit_config(tmp_path / "run", "train.steps=1", "inference.guidance_interval=[0.5, 1]", "inference.steps=2")
    train(config, DitTask)
    found = load_pipeline(tmp_path / "run/pipeline", "cpu")
    assert tuple(found.config.guidance_interval) == (0.5, 1.0) and found.guided().interval == (0.5, 1.0)
    assert "with guidance 3 at noise levels 0.5 to 1" in (tmp_path / "run/pipeline/README.md").read_text()
