"""Runs of the autoencoder with everything on: the critic in the same loop, all sizes at once, a decoder by itself."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from comparing import assert_same_run, lines, same, state
from launching import ROOT, launch
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from latentvid.config.parsing import save_config
from latentvid.errors import UserError
from latentvid.models.interchange import load_vae
from latentvid.training.export import export_run
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.optim import Part, make_optimizer
from latentvid.training.parallel.zero import make_strategy
from latentvid.training.stages.table import STAGES
from latentvid.training.stages.vae.task import VaeTask
from latentvid.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
CPU = torch.device("cpu")
CRITIC = (
    "loss.adversarial=0.5",
    "loss.adversarial_start=2",
    "loss.critic={widths: [8, 8], time_strides: [1, 2]}",
    "loss.temporal=0.1",
    "loss.equivariance=0.5",
)


class Stop(Exception):
    """What interrupts a run in these tests."""


class Stopping(VaeTask):
    """Stops in the fifth step."""

    def loss(self, model, pack, step):
        if step == 4:
            raise Stop
        return super().loss(model, pack, step)


def critic(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if name.startswith("critic.")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, vae_config) -> Path:
    """Six steps; the critic plays from the third on."""
    run = tmp_path_factory.mktemp("whole")
    train(vae_config(run, *CRITIC, "optim.weight_decay=0.1", "checkpoint.every=1", "checkpoint.keep_last=9"), VaeTask)
    return run


def test_the_critic_sleeps_unchanged_then_learns_and_the_vae_is_exported_alone(whole, vae_config, tmp_path):
    played = {"adversarial", "adaptive_weight", "discriminator", "r1"}
    records = read_metrics(whole)
    assert [played <= record.keys() for record in records] == [False, False, True, True, True, True]
    assert [record["critic_grad_norm"] > 0 for record in records] == [False, False, True, True, True, True]
    weights = [critic(state(whole, step)) for step in range(1, 7)]
    assert [same(a, b) for a, b in zip(weights, weights[1:], strict=False)] == [True, False, False, False, False]
    average = load_file(whole / "vae/diffusion_pytorch_model.safetensors")
    assert same({f"vae.{k}": v for k, v in average.items()} | critic(state(whole, 6, "ema")), state(whole, 6, "ema"))
    export_run(whole, tmp_path / "raw", STAGES, step=3, raw=True)
    assert load_vae(tmp_path / "raw").config.latents_mean is not None

    train(vae_config(tmp_path / "plain", *CRITIC[3:], "optim.weight_decay=0.1", "train.steps=6"), VaeTask)
    plain = read_metrics(tmp_path / "plain")
    assert [a["loss"] == b["loss"] for a, b in zip(records, plain, strict=True)] == [True, True, *[False] * 4]


def test_interrupted_equals_uninterrupted_with_a_critic(whole, vae_config, tmp_path):
    options = (*CRITIC, "optim.weight_decay=0.1", "checkpoint.every=3")
    with pytest.raises(Stop):
        train(vae_config(tmp_path, *options), Stopping)
    train(vae_config(tmp_path, *options), VaeTask)
    assert_same_run(tmp_path, whole, 6)


def test_each_player_is_clipped_by_its_own_norm(vae_config, tmp_path):
    """The log has the norms from before."""
    seen, limit = [], 1e-3

    def look(optimizer, *_):
        norms: dict[str, list[torch.Tensor]] = {"": [], "critic": []}
        for group in optimizer.param_groups:
            norms[group["part"]] += [p.grad.norm() for p in group["params"]]
        seen.append([torch.stack(each).norm().item() for each in norms.values()])

    hook = register_optimizer_step_pre_hook(look)
    options = ("loss.adversarial_start=0", "optim.name=adamw", f"optim.clip={limit}", "train.steps=2")
    train(vae_config(tmp_path, *CRITIC, *options), VaeTask)
    hook.remove()
    for record, norms in zip(lines(tmp_path), seen, strict=True):
        assert min(record["grad_norm"], record["critic_grad_norm"]) > 2 * limit
        assert norms == pytest.approx([limit, limit], rel=1e-2)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_equal_one_with_a_critic(vae_config, tmp_path):
    """Before its start and after, with packs of several shapes and accumulation."""
    options = (*CRITIC, "train.steps=4", "data.packs_per_step=4", "optim.name=adamw", "optim.lr=1e-3")
    options += ("loss.adversarial_start=1", "optim.warmup=1")  # asleep, alone, then heard
    save_config(vae_config(tmp_path / "two", *options), tmp_path / "config.yaml")
    launch("ddp", 2, [ROOT / "vae/train_vae.py", tmp_path / "config.yaml"])
    train(vae_config(tmp_path / "one", *options), VaeTask)
    for two, one in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert two | {"balance": 1.0} == pytest.approx(one, rel=1e-3, abs=1e-6)
    for kind in ("model", "ema"):
        a, b = (state(tmp_path / run, 4, kind) for run in ("two", "one"))
        assert a.keys() == b.keys() and max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-4


class Distance(nn.Module):
    """In the place of LPIPS."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).square().mean((1, 2, 3))


@pytest.mark.slow  # bf16 is emulated where there are no instructions for it
def test_images_and_clips_of_mixed_sizes_train_together_with_every_loss_in_bf16(vae_config, tmp_path, monkeypatch):
    monkeypatch.setattr("latentvid.training.stages.vae.task.load_lpips", lambda path, net: Distance())
    options = (
        *CRITIC,
        "loss.adversarial_start=0",
        "loss.mse=1",
        "loss.charbonnier=1",
        "loss.lpips=1",
        "loss.lpips_frames=2",
    )
    options += ("train.mixed_precision=bf16", "data.image_share=0.4", "data.max_area=600", "samples.every=4")
    config = vae_config(tmp_path, *options, "train.steps=4", "log.draws=true")
    task = VaeTask(config, CPU)
    shapes = {tuple(shape) for shape in task.source.shapes.map(tuple)}
    assert len({shape[1:] for shape in shapes}) >= 2 and {1, 9} <= {shape[0] for shape in shapes}
    assert all(height * width <= 600 for _, height, width in shapes)
    train(config, VaeTask)
    records = read_metrics(tmp_path)
    named = {"l1", "charbonnier", "mse", "temporal", "kl", "lpips"}
    assert all(named <= record.keys() for record in records) and "discriminator" in records[-1]
    assert all(math.isfinite(value) for record in records for value in record.values())
    seen = {bool(task.is_image[index]) for step in (tmp_path / "draws.jsonl").read_text().splitlines()
            for _, index in json.loads(step)["draws"]}  # fmt: skip
    assert seen == {True, False} and len(list((tmp_path / "samples").iterdir())) == 5
    assert load_vae(tmp_path / "vae").config.latents_mean is not None


def latents(folder: Path) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        vae = load_vae(folder)
        return vae.normalise(vae.encode(torch.rand(1, 3, 9, 24, 32, generator=generator) * 2 - 1).latent_dist.mean)


def test_a_tuned_decoder_leaves_latents_and_statistics_as_they_were(vae_config, tiny_vae, tmp_path):
    options = ("model={}", f"init={tiny_vae}", "freeze_encoder=true", "optim.weight_decay=0.1", *CRITIC)
    config = vae_config(tmp_path, *options, "train.steps=4", "optim.lr=1e-2", "loss.adversarial_start=0")
    task = VaeTask(config, CPU)
    pack = task.blank_pack([(2, 4, 4)])
    mean = task.model(torch.zeros(1, 3, 5, 16, 16), pack.groups[0].noise)[1]
    assert not mean.requires_grad  # so nothing of the encoder is kept for a backward pass
    forward = VaeTask(vae_config(tmp_path, *options[:2]), CPU).grid_flops((2, 4, 4))
    frozen = task.grid_flops((2, 4, 4))
    assert frozen.model + frozen.encode == forward.model and task.flops(pack) == frozen.model < forward.model

    train(config, VaeTask)
    assert torch.equal(latents(tmp_path / "vae"), latents(tiny_vae))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (tiny_vae, tmp_path / "vae"))
    assert [after[key] == before[key] for key in ("latents_mean", "latents_std", "widths")] == [True] * 3
    for kind in ("ema", "optimizer"):
        assert not [name for name in state(tmp_path, 4, kind) if "encoder" in name and "decoder" not in name]
    weights = [load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (tiny_vae, tmp_path / "vae")]
    changed = {name.split(".")[0] for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert changed == {"decoder"}


def test_training_goes_on_from_another_models_weights(vae_config, tiny_vae, tmp_path):
    config = vae_config(tmp_path, "model={latent_channels: 4}", f"init={tiny_vae}", "train.steps=1")
    begun = VaeTask(config, CPU).model.state_dict()
    assert same(dict(begun), load_file(tiny_vae / "diffusion_pytorch_model.safetensors"))
    train(config, VaeTask)
    assert not torch.equal(latents(tmp_path / "vae"), latents(tiny_vae))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model={latent_channels: 8}"], r"init: .*another model \(model.latent_channels is 8, the VAE's 4\)"),
        (["model={_class_name: AutoencoderKLWan}"], r"model._class_name is AutoencoderKLWan"),
        (["init=nowhere"], "nowhere holds no VAE"),
    ],
)
def test_an_init_that_is_not_what_was_asked_is_said(overrides, message, vae_config, tiny_vae, tmp_path):
    with pytest.raises(UserError, match=message):
        VaeTask(vae_config(tmp_path, "model={}", f"init={tiny_vae}", *overrides), CPU)


def test_a_decoder_is_not_tuned_to_latents_without_statistics(vae_config, tiny_vae, tmp_path):
    vae = load_vae(tiny_vae)
    vae.register_to_config(latents_mean=None, latents_std=None)
    vae.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="no latents_mean and latents_std"):
        VaeTask(vae_config(tmp_path, "model={}", f"init={tmp_path / 'bare'}", "freeze_encoder=true"), CPU)


def test_zero_which_has_one_norm_for_all_refuses_a_critic(vae_config, tmp_path):
    model = nn.ModuleDict({"vae": nn.Linear(2, 2), "critic": nn.Linear(2, 2)})
    model.critic = model["critic"]
    config = vae_config(tmp_path, "optim.name=adamw")
    plugin = SimpleNamespace(zero_stage=2)
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED, state=SimpleNamespace(deepspeed_plugin=plugin)
    )
    with pytest.raises(UserError, match="ZeRO clips all gradients by one norm, but critic needs its own: launch DDP"):
        make_strategy(accelerator, config, model, make_optimizer(model, config.optim, [Part("critic", 1e-4)]), True)
