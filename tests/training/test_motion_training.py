"""Inflating an image model: all of it trained, or temporal blocks alone, a module that goes into other image models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_tasks import Stop, draws_of, stopping

from latentvid.config.yaml_files import ConfigError
from latentvid.errors import UserError
from latentvid.models.flops import backbone_flops
from latentvid.pipelines.command import note_condition
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.pipelines.tasks import image_to_video
from latentvid.training.dryrun.memory import state_bytes
from latentvid.training.export import export_run
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.table import STAGES
from latentvid.training.trainer import train

CPU = torch.device("cpu")
ALONE = "trainable=[^temporal]"
FILE = "diffusion_pytorch_model.safetensors"
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def config(dit_config, tiny_pipeline):
    """`config(run, ...)`: a tiny DitConfig that inflates the tiny pipeline's model."""

    def make(run: Path, *more: str):
        base = (f"init={tiny_pipeline}", f"model.mlp_ratio={8 / 3}", "model.attention=inflated")
        short = ("train.steps=2", "checkpoint.every=1", "data.packs_per_step=1")
        return dit_config(run, *base, *short, *more)

    return make


def test_all_of_it_is_trained_and_begins_as_the_image_model(config, tmp_path, tiny_pipeline, capsys):
    task = DitTask(config(tmp_path / "run"), CPU)
    assert not any(task.origin.left.values()) and "are new" in task.origin.summary()
    assert task.product == "pipeline" and all(p.requires_grad for p in task.model.parameters())
    assert len(task.blocks) == 4 and task.base is None
    image = load_pipeline(tiny_pipeline, "cpu").transformer
    held = dict(image.named_parameters())
    for name, parameter in task.model.named_parameters():
        assert name.startswith("temporal.") or torch.equal(parameter, held[name])
    train(config(tmp_path / "run"), DitTask)
    made = load_pipeline(tmp_path / "run/pipeline", "cpu")
    assert (made.transformer.config.attention, len(made.transformer.temporal)) == ("inflated", 2)
    on = DitTask(config(tmp_path / "on", f"init={tmp_path / 'run/pipeline'}", ALONE), CPU)
    assert on.product == "pipeline"  # of a model that was a video model before, there is no image model to go into
    assert sum(p.requires_grad for p in on.model.parameters()) == len(list(on.model.temporal.parameters()))


def test_temporal_blocks_alone_gone_on_with_are_as_not_stopped_and_leave_a_module(
    config, tmp_path, tiny_pipeline, capsys
):
    train(config(tmp_path / "whole", ALONE), DitTask)
    with pytest.raises(Stop):
        train(config(tmp_path / "run", ALONE), stopping(1))
    train(config(tmp_path / "run", ALONE), DitTask)
    for kind in ("model", "ema", "optimizer"):
        a, b = (load_file(tmp_path / run / f"checkpoints/step-00000002/{kind}.safetensors") for run in ("whole", "run"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        assert all(key.startswith("temporal.") for key in a)
    folder = tmp_path / "run/motion"
    assert not (tmp_path / "run/pipeline").exists()
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", FILE]
    average = load_file(tmp_path / "run/checkpoints/step-00000002/ema.safetensors")
    held = load_file(folder / FILE)
    assert held.keys() == average.keys() and all(torch.equal(held[name], average[name]) for name in held)
    said = json.loads((folder / "config.json").read_text())
    assert (said["temporal_every"], said["temporal_stride"], said["clips"]["frames"]) == (1, 4, 17)
    assert said["base"]["where"].startswith(str(tiny_pipeline)) and said["noise"]["target"] == "flow"
    export_run(tmp_path / "run", tmp_path / "out", STAGES)
    assert all(torch.equal(x, held[name]) for name, x in load_file(tmp_path / "out" / FILE).items())

    capsys.readouterr()
    pipeline = load_pipeline(tiny_pipeline, "cpu", motion=folder)
    assert "trained on another" not in capsys.readouterr().err  # the image model is known by its fingerprint
    assert (pipeline.config.frames, pipeline.config.height) == (17, 32)
    whole = DitTask(config(tmp_path / "run", ALONE), CPU).model
    for name, parameter in pipeline.transformer.named_parameters():
        assert torch.equal(parameter, average.get(name, whole.get_parameter(name)))
    clips = pipeline("a red 7", num_frames=5, sampling=Sampling(steps=2, progress=False), output_type="uint8").frames
    pipeline.save_pretrained(tmp_path / "moves")
    again = load_pipeline(tmp_path / "moves", "cpu")
    assert torch.equal(
        again("a red 7", num_frames=5, sampling=Sampling(steps=2, progress=False), output_type="uint8").frames[0],
        clips[0],
    )


def test_how_frames_were_given_is_the_modules(config, tmp_path, tiny_pipeline, capsys):
    given = ("given.plain=1", "given.first=3", "given.noise=[0.1, 0.3]", "train.steps=1")
    train(config(tmp_path / "run", ALONE, *given), DitTask)
    pipeline = load_pipeline(tiny_pipeline, "cpu", motion=tmp_path / "run/motion")
    assert tuple(pipeline.config.given) == ("plain", "first") and pipeline.config.given_noise == (0.1, 0.3)
    note_condition(pipeline, Sampling(), "ends")
    assert "was trained with first 75%, plain 25% of given frames, none of which is ends" in capsys.readouterr().err
    picture = torch.zeros(32, 32, 3, dtype=torch.uint8)
    quick = Sampling(steps=1, image_noise=0.2, progress=False)
    assert image_to_video(pipeline, [picture], ["a red 7"], 5, sampling=quick)[0].shape[0] == 5
    with pytest.raises(UserError, match="image noise 0.5: the model was trained with 0.1 to 0.3"):
        image_to_video(pipeline, [picture], ["a red 7"], 5, sampling=replace(quick, image_noise=0.5))


def test_a_module_is_gone_on_with_in_another_run(config, tmp_path):
    train(config(tmp_path / "run", ALONE, "train.steps=1", "model.temporal_every=2"), DitTask)
    folder = tmp_path / "run/motion"
    held = load_file(folder / FILE)
    for more in ((ALONE,), (), ("adapter.kind=lora", "adapter.rank=2")):
        task = DitTask(config(tmp_path / "on", f"init_motion={folder}", *more), CPU)
        assert task.model.config.temporal_every == 2 and task.origin.taken >= sum(x.numel() for x in held.values())
        names = dict(task.model.named_parameters())
        same = [torch.equal(names.get(name, x), x) for name, x in held.items()]
        assert all(same) and task.product == {ALONE: "motion", "": "pipeline"}.get("".join(more), "lora")
    said = json.loads((folder / "config.json").read_text())
    for changed, message in [
        (
            {"noise": said["noise"] | {"path": "cosine", "target": "v"}},
            "init_motion: .* with the noise of .*cosine",
        ),
        ({"noise": said["noise"] | {"sigma_data": 0.5}}, r"the noise of \{'sigma_data': 0.5\}, and this model with"),
        ({"temporal_stride": 8}, "init_motion: .* is for latent frames of 8 frames, and this model's are of 4"),
    ]:
        other = shutil.copytree(folder, tmp_path / f"other{len(list(tmp_path.iterdir()))}")
        (other / "config.json").write_text(json.dumps(said | changed))
        with pytest.raises(UserError, match=message):
            DitTask(config(tmp_path / "on", f"init_motion={other}", ALONE), CPU)
    with pytest.raises(UserError, match="model.temporal_every is 1, and init_motion was trained with 2"):
        DitTask(config(tmp_path / "on", f"init_motion={folder}", "model.temporal_every=1"), CPU)


def test_only_what_is_trained_is_counted(config, dit_config, tmp_path, tiny_pipeline):
    every, alone = (DitTask(config(tmp_path / "run", *more), CPU) for more in ((), (ALONE,)))
    held = [next(iter(state_bytes(task.model, task.blocks, "adamw", 1)))[2] for task in (every, alone)]
    temporal = 4 * sum(p.numel() for p in alone.model.temporal.parameters())
    assert (held[1].gradients, held[1].average, held[1].optimizer) == (temporal, temporal, 2 * temporal)
    assert held[0].weights == held[1].weights and held[0].gradients == held[0].weights
    image = DitTask(dit_config(tmp_path / "run", f"model.mlp_ratio={8 / 3}"), CPU).model
    clip, picture = ([(5, 4, 4)], [3.0]), ([(1, 4, 4)], [3.0])
    assert backbone_flops(alone.model, *picture) == backbone_flops(image, *picture)
    by_frames = backbone_flops(image, [(1, 4, 4)] * 5, [3.0] * 5)
    assert 1.4 * by_frames < backbone_flops(alone.model, *clip) < 2.0 * by_frames
    pack = alone.make_pack(draws_of(alone, 6))
    losses, _ = alone.loss(alone.model, pack, 0)
    losses.sum().backward()
    assert all((p.grad is not None) == name.startswith("temporal.") for name, p in alone.model.named_parameters())


def test_what_cannot_be_is_refused(config, tmp_path, tiny_pipeline):
    index = tiny_pipeline / "model_index.json"
    for more, message in [
        (("init=null", ALONE), "trainable leaves the rest of the model as it is: give its weights by init"),
        (("init=null", "init_motion=there"), "init_motion is put into an image model of ours: give its weights"),
        (("model.temporal_every=0",), "model.temporal_every=0: must be a whole number from 1"),
        (("model.temporal_every=3",), "temporal_every 3: there are 2 blocks"),
        (("init_motion=there",), "there holds no motion module"),
        (("model.attention=causal", "trainable=[^temporal]"), "model.attention is causal, was full"),
        (("adapter.kind=lora",), "new temporal blocks into .*, and adapter.kind=lora leaves them as they are, which"),
        (("trainable=[^blocks.0]",), r"new temporal blocks into .*, and trainable=\['\^blocks.0'\] leaves them as"),
        (("init=null", "model.attention=full", "model.temporal_every=2"), "temporal_every 2 is of inflated attention"),
        (("model.attention=full", ALONE), "trainable: '.temporal' is found in no parameter's name"),
    ]:
        with pytest.raises((ConfigError, UserError), match=message):
            DitTask(config(tmp_path / "run", *more), CPU)
    other = tmp_path / "clips"
    other.mkdir()
    for part in tiny_pipeline.iterdir():
        if part.is_dir():
            (other / part.name).symlink_to(part)
    kinds = [{"frames": 9, "height": 32, "width": 32, "fps": 8.0, "count": 1}]
    (other / "model_index.json").write_text(json.dumps(json.loads(index.read_text()) | {"trained": kinds}))
    with pytest.raises(UserError, match="it was trained on clips of up to 9 frames, and its blocks would see one"):
        DitTask(config(tmp_path / "run", f"init={other}"), CPU)
    taken = DitTask(config(tmp_path / "run", f"init={other}", "init_partial=true"), CPU)
    assert "clips of up to 9 frames" in taken.origin.summary()
