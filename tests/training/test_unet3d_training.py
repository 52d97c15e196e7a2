"""The 3D U-Net is trained, measured, stopped, exported, sampled and begun with as the transformer is."""

import json

import pytest
import torch
from diffusers import UNet3DConditionModel
from safetensors.torch import load_file
from small_tasks import Stop, draws_of, stopping

from latentvid.errors import UserError
from latentvid.models.open.unet3d import UNet3D
from latentvid.models.pixels import PixelCodec
from latentvid.packing import unpatchify
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.training.dryrun.preflight import preflight
from latentvid.training.export import export_run
from latentvid.training.launch import make_plan
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.table import STAGES
from latentvid.training.trainer import train

SIZES = "kind: unet3d, block_out_channels: [8], layers_per_block: 1"
UNET = f"model={{{SIZES}, norm_num_groups: 4, attention_head_dim: 2}}"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dit_config, tiny_latents):
    """Two steps on images and clips, with a checkpoint of each and held-out losses."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("unet") / "run"
    held_out = ("validation.every=2", f"validation.latents={tiny_latents}", "validation.samples=2", "validation.bins=2")
    train(config_of(dit_config, run, *held_out), DitTask)
    return run


def config_of(dit_config, run, *more):
    few = ("train.steps=2", "checkpoint.every=1", "data.packs_per_step=1", "optim.warmup=0")
    return dit_config(run, UNET, *few, *more)


def test_its_loss_is_that_of_each_sample_alone(dit_config, tmp_path):
    """Written with diffusers' class, a padded or masked prompt nowhere."""
    task = DitTask(config_of(dit_config, tmp_path), CPU)
    model = task.model.eval()
    pack = task.prepare(task.make_pack(draws_of(task, 6)))
    assert len(set(pack.layout.grid)) > 1  # images and clips
    losses, _ = task.errors(model, pack)
    clean, noise = (unpatchify(x, pack.layout, (1, 1, 1)) for x in (pack.clean, pack.noise))
    texts = pack.text.split(pack.text_layout.lengths)
    assert len({len(text) for text in texts}) > 1
    for i, (x, eps, text) in enumerate(zip(clean, noise, texts, strict=True)):
        t = float(pack.timestep[(pack.layout.frame_segment == i).nonzero()[0]])
        with torch.no_grad():
            z = (1 - t) * x + t * eps
            out = model.raw(z[None], torch.tensor([max(0.0, 1000 * t - 1)]), text[None], return_dict=False)[0][0]
        assert float(losses[i]) == pytest.approx(float((out - (eps - x)).square().mean()), rel=1e-4)


def test_a_run_stopped_and_gone_on_with_is_one_not_stopped(trained, dit_config, tiny_latents, tmp_path):
    """Bit for bit, with the dropout of its convolutions over time."""
    config = config_of(dit_config, tmp_path / "run")
    with pytest.raises(Stop):
        train(config, stopping(after=1))
    task = DitTask(config, CPU)
    assert task.model.drops
    train(config, DitTask)
    for kind in ("model", "ema", "optimizer"):
        ours, theirs = (
            load_file(r / f"checkpoints/step-00000002/{kind}.safetensors") for r in (tmp_path / "run", trained)
        )
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours), kind
    assert [len(r["bins"]) for r in read_metrics(trained, "validation.jsonl")] == [2, 2]


def test_its_pipeline_is_loaded_and_samples(trained, tmp_path):
    pipeline = LatentVideoPipeline.from_pretrained(trained / "pipeline")
    assert isinstance(pipeline.transformer, UNet3D)
    plain = UNet3DConditionModel.from_pretrained(trained / "pipeline" / "transformer")
    assert all(torch.equal(p, plain.get_parameter(name)) for name, p in pipeline.transformer.raw.named_parameters())
    sizes = dict(num_frames=[5, 1], height=16, width=[16, 24], seed=3)
    clips = pipeline(["a red 7 moves up", "a blue 3"], **sizes, output_type="uint8").frames
    assert [tuple(clip.shape) for clip in clips] == [(5, 16, 16, 3), (1, 16, 24, 3)]
    alone = pipeline(["a blue 3"], num_frames=1, height=16, width=24, seed=4, output_type="uint8").frames[0]
    assert (clips[1].int() - alone.int()).abs().max() <= 1
    pipeline.save_pretrained(tmp_path / "again")
    again = LatentVideoPipeline.from_pretrained(tmp_path / "again")
    assert torch.equal(
        again(["a blue 3"], num_frames=1, height=16, width=24, seed=4, output_type="uint8").frames[0], alone
    )


def test_a_run_begins_with_its_weights(trained, dit_config, tmp_path):
    """Of a pipeline, and of a checkpoint: `kind` and sizes are as there."""
    bare = ("model={}", f"init={trained / 'pipeline'}")
    exported = load_file(trained / "pipeline/transformer/diffusion_pytorch_model.safetensors")
    for init in bare, ("model={}", f"init={trained}"):
        task = DitTask(config_of(dit_config, tmp_path / "new", *init), CPU)
        assert isinstance(task.model, UNet3D) and task.config.model["kind"] == "unet3d"
        assert all(torch.equal(p, exported[name]) for name, p in task.model.raw.named_parameters())
    with pytest.raises(UserError, match=r"holds a UNet3DConditionModel, and model\.kind is dit"):
        DitTask(config_of(dit_config, tmp_path / "other", "model={kind: dit}", f"init={trained}"), CPU)
    export_run(trained, tmp_path / "out", STAGES, step=1)
    assert json.loads((tmp_path / "out/transformer/config.json").read_text())["_class_name"] == "UNet3DConditionModel"


def test_a_dry_run_leaves_out_strategies_that_it_cannot_have(dit_config, tmp_path):
    config = config_of(dit_config, tmp_path, "data.packs_per_step=2")
    task = DitTask(config, CPU)
    said = preflight(config, task, make_plan(config, task), world=2, device=CPU).text
    assert all(f"{name}, 2 processes" in said for name in ("DDP", "ZeRO-1", "ZeRO-2"))
    assert not any(f"{name}, 2" in said for name in ("FSDP2", "ZeRO-3")) and "FSDP2 and ZeRO-3 cannot have it" in said


def test_clips_themselves_are_noised(dit_config, digits_data, tmp_path):
    """`vae: pixels`."""
    clips = ("vae=pixels", "data.latents=null", f"data.manifest={digits_data / 'train.jsonl'}", "data.max_frames=3")
    run = tmp_path / "run"
    train(
        config_of(dit_config, run, *clips, "train.steps=1", "data.packs_per_step=1", "data.tokens_per_pack=2400"),
        DitTask,
    )
    pipeline = LatentVideoPipeline.from_pretrained(run / "pipeline")
    assert isinstance(pipeline.vae, PixelCodec) and pipeline.transformer.latent_channels == 3
    video = torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8)
    (latent,) = pipeline.encode([video])
    assert latent.shape == (3, 2, 8, 12) and torch.equal(pipeline.decode([latent])[0], video)
    assert pipeline("a red 7", num_frames=2, height=8, width=8, output_type="uint8").frames[0].shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("{kind: unet}", "plain", r"model\.kind='unet': must be one of dit, unet3d"),
        ("{kind: unet3d, width: 8}", "plain", "UNet3DConditionModel: there is no argument width"),
        ("{kind: unet3d, block_out_channels: 8}", "plain", r"model\.block_out_channels=8: must be a list of channels"),
        (f"{{{SIZES}, attention_head_dim: 3}}", "plain", r"model\.attention_head_dim=3: the number of heads .* 8"),
        (f"{{{SIZES}, num_attention_heads: 2}}", "plain", r"model\.num_attention_heads is not of use"),
        (f"{{{SIZES}, down_block_types: [DownBlock2D]}}", "plain", "must be a list of DownBlock3D and CrossAttnDown"),
        (f"{{{SIZES}, norm_num_groups: 5, attention_head_dim: 2}}", "plain", "num_channels .*must be divisible by"),
        (f"{{{SIZES}, norm_num_groups: 4, attention_head_dim: 2}}", "first", r"given\.first: unet3d takes one"),
    ],
)  # fmt: skip
def test_what_it_cannot_be_trained_with_is_refused_by_name(model, given, said, dit_config, tmp_path):
    with pytest.raises(UserError, match=said):
        DitTask(config_of(dit_config, tmp_path, f"model={model}", f"given.{given}=0.5"), CPU)
