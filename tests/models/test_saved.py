"""Saved folders whose configurations tell of what cannot be: one message, before anything is built."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from latentvid.errors import UserError
from latentvid.models.building import parameters_of
from latentvid.models.interchange import build_vae
from latentvid.models.saved import load_component
from latentvid.models.transformer import VideoDiT
from latentvid.pipelines.loading import load_pipeline
from latentvid.text import TextEncoder
from latentvid.training.task import build_model


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("model_index.json", "fps", "x", "fps='x': must be a number"),
        ("model_index.json", "fps", float("nan"), "fps=nan: must be a finite number"),
        ("model_index.json", "frames", 2**40, "frames=.*: must be a whole number"),
        ("model_index.json", "steps", -1, "steps=-1: must be a whole number"),
        ("model_index.json", "guidance", float("inf"), "guidance=inf: must be a finite number"),
        ("scheduler/scheduler_config.json", "beta_end", "x", "beta_end='x': must be a number"),
        ("scheduler/scheduler_config.json", "shift", float("nan"), "shift=nan: must be a finite number"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12, "num_train_timesteps=1000000000000: must"),
        ("text_encoder/config.json", "num_layers", 10_000_000, "num_layers=10000000: must be a whole number"),
        ("text_encoder/config.json", "d_model", "wide", "makes no T5"),
        ("text_encoder/config.json", "num_layers", 200, "config.json tells of .* parameters, and the weights have"),
        ("transformer/config.json", "depth", -1, "depth=-1: must be a whole number from 1 to"),
        ("transformer/config.json", "depth", 200, "tells of a VideoDiT of .* parameters, and its weights have"),
        ("transformer/config.json", "rope_theta", -1.0, "rope_theta=-1: must be a finite number"),
        ("transformer/config.json", "width", 50, "width 50 / heads 2|makes no VideoDiT"),
        ("transformer/config.json", "heads", True, "heads=True: must be a whole number"),
        ("vae/config.json", "latents_std", [0.0], r"latents_std\[0\]=0: must be a finite number above 0"),
        ("vae/config.json", "widths", "abc", "widths='abc': must be a list"),
        ("vae/config.json", "patch", 0, "patch=0: must be a whole number"),
    ],
)
def test_a_saved_pipeline_of_impossible_numbers_is_refused(tiny_pipeline, tmp_path, file, key, value, message):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    held = json.loads((folder / file).read_text())
    assert key in held
    (folder / file).write_text(json.dumps(held | {key: value}))
    with pytest.raises(UserError, match=message) as error:
        load_pipeline(folder, "cpu")
    assert Path(file).name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "3", "{", "null", '"a"', "[" * 100_000])
@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json", "text_encoder/config.json"])
def test_json_that_is_no_object_is_refused(tiny_pipeline, tmp_path, file, text):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=Path(file).name):
        load_pipeline(folder, "cpu")


def test_a_text_encoder_of_impossible_numbers_is_refused(tiny_t5, tmp_path):
    shutil.copytree(tiny_t5, tmp_path / "t5")
    held = json.loads((tmp_path / "t5/config.json").read_text())
    (tmp_path / "t5/config.json").write_text(json.dumps(held | {"num_heads": -4}))
    with pytest.raises(UserError, match="config.json: num_heads=-4: must be a whole number from 1"):
        TextEncoder.from_pretrained(tmp_path / "t5")


def test_networks_that_no_memory_holds_are_refused_before_they_are_built():
    with pytest.raises(UserError, match=r"model: a VideoDiT of these sizes has [\d,]+ parameters, [\d,.]+ GiB in fp32"):
        build_model(VideoDiT, {"width": 65_536, "depth": 200, "heads": 512}, "model")
    with pytest.raises(UserError, match=r"model: a CausalVideoAutoencoder of these sizes has .* GiB are free here"):
        build_vae({"widths": [65_536] * 3}, "model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": -1}, "model.depth=-1: must be"),
        ({"patch": 0}, "model.patch=0: must be"),
        ({"rope_theta": -1}, "model.rope_theta=-1: must be"),
        ({"rope_theta": float("nan")}, "model.rope_theta=nan: must be"),
        ({"mlp_ratio": float("inf")}, "model.mlp_ratio=inf: must be"),
        ({"width": 100, "heads": 3}, "model: width 100 / heads 3"),
        ({"width": 10**12}, "model.width=1000000000000: must be"),
        ({"depth": "deep"}, "model.depth='deep': must be a whole number"),
        ({"depth": None}, "model.depth=None: must be a whole number"),
        ({"attention": 3}, "model.attention=3: must be a text"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        build_model(VideoDiT, arguments, "model")


def test_counting_parameters_draws_no_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    count = parameters_of(VideoDiT, {"width": 48, "depth": 2, "heads": 2})
    assert torch.equal(before, torch.get_rng_state())
    assert count == sum(p.numel() for p in VideoDiT(width=48, depth=2, heads=2).parameters())


def test_attentions_of_older_files_are_read_by_their_new_names(tmp_path):
    """As Stable Diffusion's autoencoder is published."""
    vae = AutoencoderKL(block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=2,
                        up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    vae.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    held = load_file(file)
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        held = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in held.items()}
    save_file(held, file, {"format": "pt"})
    loaded = load_component(AutoencoderKL, tmp_path)
    assert all(torch.equal(p, vae.get_parameter(name)) for name, p in loaded.named_parameters())
