"""What a run refuses before it begins, by the key that is to be changed."""

import pytest
import torch

from latentvid.errors import UserError
from latentvid.models.interchange import load_vae
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.vae.task import VaeTask
from latentvid.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        # each of two processes that `accelerate launch --multi_gpu` starts on a machine without GPUs
        ({"WORLD_SIZE": "2"}, "launcher started 2 processes, but this one works in a group of 1"),
        # the one process that `accelerate launch --cpu --num_processes 2` starts
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}, "asked for several processes but started one"),
        # FSDP and DeepSpeed files with accelerate's CPU switch, which makes them plain DDP
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_USE_CPU": "true"}, "asked for FSDP, but"),
    ],
)
def test_a_world_other_than_asked_is_refused(environment, message, dit_config, tmp_path, monkeypatch):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=message) as error:
        train(dit_config(tmp_path), DitTask)
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_cache_of_larger_clips_than_data_allows_is_refused(dit_config, tmp_path):
    with pytest.raises(UserError, match="data.max_area is 64, but .* has clips of"):
        DitTask(dit_config(tmp_path, "data.max_area=64"), torch.device("cpu"))
    DitTask(dit_config(tmp_path, "data.max_area=1000000"), torch.device("cpu"))  # of which nothing is cut


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.latents=none"], r"give data\.latents .* or data\.manifest"),
        (["data.tokens_per_pack=50"], r"holds 50 tokens .* raise data\.tokens_per_pack"),
        (["model.latent_channels=7"], r"model\.latent_channels is 7 but the loaded parts have 4: leave it out"),
        (["model.widht=7"], r"model: .*widht"),
        (["scheduler={path: ddpm}"], r"scheduler: target 'flow' needs path 'rectified_flow'"),
        (["model.patch=3"], r"multiple of the patch size 3"),
    ],
)
def test_what_does_not_fit_together_is_said(overrides, message, dit_config, tmp_path):
    with pytest.raises(UserError, match=message):
        train(dit_config(tmp_path, *overrides), DitTask)


def test_a_cache_of_other_weights_is_refused_by_name(dit_config, tiny_vae, tiny_t5, tmp_path):
    vae = load_vae(tiny_vae)
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] += 0.1
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match="stale: the VAE's weights are not"):
        train(dit_config(tmp_path / "a", f"vae={tmp_path / 'vae'}"), DitTask)
    from transformers import AutoTokenizer, T5EncoderModel

    encoder = T5EncoderModel.from_pretrained(tiny_t5)
    with torch.no_grad():
        encoder.shared.weight[5] += 1.0
    encoder.save_pretrained(tmp_path / "t5")
    AutoTokenizer.from_pretrained(tiny_t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(UserError, match="stale: the text encoder's weights are not"):
        train(dit_config(tmp_path / "b", f"text_encoder={tmp_path / 't5'}"), DitTask)


def test_a_moved_vae_is_the_same_vae(dit_config, tiny_vae, tmp_path):
    load_vae(tiny_vae).save_pretrained(tmp_path / "moved")
    DitTask(dit_config(tmp_path / "run", f"vae={tmp_path / 'moved'}"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.gradient_checkpointing=true", r"train\.gradient_checkpointing: CausalVideoAutoencoder cannot do it"),
        ("train.compile=true", r"train\.compile: CausalVideoAutoencoder cannot do it"),
        ("data.crop=10", r"data\.crop 10 is not a multiple of the VAE's stride 4"),
        ("data.manifest=none", r"data\.manifest is required"),
    ],
)
def test_what_the_autoencoder_cannot_do_is_said(override, message, vae_config, tmp_path):
    with pytest.raises(UserError, match=message):
        train(vae_config(tmp_path, override), VaeTask)


@pytest.mark.parametrize(
    "override",
    ["data.max_frames=0", "train.ema=1.0", "checkpoint.keep_last=0", "caption.dropout=2", "run.seed=-1"],
)
def test_values_out_of_range_name_their_key(override, dit_config, tmp_path):
    section, key = override.split("=")[0].split(".")
    with pytest.raises(UserError, match=rf"{section}\.{key}="):
        dit_config(tmp_path, override)
