"""Motion modules are trained beside a frozen Stable Diffusion, and read by diffusers' own AnimateDiffPipeline."""

import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter
from open_animatediff import adapter
from open_models import run_packed, samples
from safetensors.torch import load_file
from small_tasks import Stop, stopping

from latentvid.config.parsing import ConfigError
from latentvid.errors import UserError
from latentvid.models.open.animatediff import AnimateDiff
from latentvid.pipelines.loading import load_pipeline
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

NEW = "model.motion={motion_num_attention_heads: 2, motion_max_seq_length: 8}"
SMALL = ("data.max_frames=2", "data.tokens_per_pack=700", "train.steps=2", "checkpoint.every=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, repository, published_config):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("motion") / "run"
    train(published_config(run, repository("stable_diffusion"), NEW, *SMALL), DitTask)
    return run


def test_diffusers_reads_what_was_trained_and_so_do_we(trained, repository):
    names = load_file(trained / "checkpoints/step-00000002/model.safetensors").keys()
    assert names and all("motion_modules" in name for name in names)
    moved = MotionAdapter.from_pretrained(trained / "motion")
    assert any(float(p.abs().max()) > 0 for name, p in moved.named_parameters() if ".proj_out." in name)
    theirs = AnimateDiffPipeline.from_pretrained(repository("stable_diffusion"), motion_adapter=moved)
    ours = load_pipeline(repository("stable_diffusion"), "cpu", mixed_precision="no", motion=trained / "motion")
    assert isinstance(ours.transformer, AnimateDiff) and ours.scheduler.config.betas == "linear"
    (s,) = samples(4, (1, 1, 1), 12, [(3, 4, 4)], [5], [0.5])
    with torch.no_grad():
        got = run_packed(ours.transformer, [s], (1, 1, 1), None)[0]
        want = theirs.unet(s.latent[None], torch.tensor([499.0]), s.text[None].repeat(3, 1, 1), return_dict=False)[0][0]
    torch.testing.assert_close(got, want.flatten(1).T, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_a_run_stopped_and_gone_on_with_is_one_not_stopped(trained, repository, published_config, tmp_path):
    config = published_config(tmp_path / "run", repository("stable_diffusion"), NEW, *SMALL)
    with pytest.raises(Stop):
        train(config, stopping(after=3))
    train(config, DitTask)
    for kind in ("model", "ema", "optimizer"):
        ours, theirs = (
            load_file(r / f"checkpoints/step-00000002/{kind}.safetensors") for r in (tmp_path / "run", trained)
        )
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours), kind


def test_an_adapter_is_gone_on_with_and_what_does_not_fit_is_refused(repository, published_config, tmp_path):
    folder, motion = repository("stable_diffusion"), tmp_path / "motion"
    adapter().save_pretrained(motion)
    task = DitTask(published_config(tmp_path / "a", folder, f"model.motion={motion}", *SMALL), torch.device("cpu"))
    held = adapter().state_dict()
    found = {name: p for name, p in task.model.raw.named_parameters() if p.requires_grad}
    assert found and all(torch.equal(p, held[name]) for name, p in found.items())
    assert task.config.scheduler["betas"] == "linear" and task.product == "motion"
    assert task.origin.taken == task.origin.total
    new = DitTask(published_config(tmp_path / "n", folder, NEW, *SMALL), torch.device("cpu"))
    fresh = sum(p.numel() for p in new.model.parameters() if p.requires_grad)
    assert 0 < new.origin.taken == new.origin.total - fresh  # of the image model alone
    with pytest.raises(UserError, match=r"data\.max_frames: 9 frames: animatediff has positions for at most 8"):
        long = ("data.max_frames=9", "data.tokens_per_pack=3000")
        DitTask(published_config(tmp_path / "b", folder, f"model.motion={motion}", *long), torch.device("cpu"))
    with pytest.raises(UserError, match="samples: 9 frames: animatediff has positions for at most 8"):  # at the start
        looks = ("samples.every=9", "samples.prompts=[a]", "samples.frames=9", "samples.height=16", "samples.width=16")
        DitTask(published_config(tmp_path / "b", folder, f"model.motion={motion}", *SMALL, *looks), torch.device("cpu"))
    with pytest.raises(UserError, match=r"model\.motion is of Stable Diffusion's U-Net"):
        DitTask(published_config(tmp_path / "c", repository("wan"), NEW), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"model\.motion=3: give a MotionAdapter's folder"):
        published_config(tmp_path / "d", folder, "model.motion=3")
    with pytest.raises(ConfigError, match="is of new motion modules, and adapter.kind=lora leaves them as they are"):
        published_config(tmp_path / "e", folder, NEW, "adapter.kind=lora")
