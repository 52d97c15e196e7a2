"""Saved pipelines that are not what they should be: refused by name, before anything in them is imported or run."""

import importlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from latentvid.errors import UserError
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.interchange import load_vae
from latentvid.models.transformer import VideoDiT
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.text import TextEncoder

WEIGHTS = {
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
QUICK = Sampling(steps=1, progress=False)


@pytest.fixture
def folder(tiny_pipeline, tmp_path) -> Path:
    return shutil.copytree(tiny_pipeline, tmp_path / "model")


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def loads(folder: Path) -> list:
    """All the ways in which a pipeline is loaded."""
    return [lambda: load_pipeline(folder, "cpu"), lambda: LatentVideoPipeline.from_pretrained(folder)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vae", ["os", "system"]),
        ("transformer", ["antigravity", "VideoDiT"]),
        ("scheduler", ["latentvid.models.transformer", "VideoDiT"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("tokenizer", "os.system"),
        ("tokenizer", [["transformers"], {}]),
        ("vae", None),
        ("vae", []),
        ("safety_checker", ["antigravity", "fly"]),
        ("_class_name", "StableDiffusion3Pipeline"),
        ("_class_name", ["evil.py", "Anything"]),
        ("_class_name", 3),
    ],
)
def test_nothing_that_an_index_names_is_imported(folder, monkeypatch, key, value):
    change(folder / "model_index.json", **{key: value})
    monkeypatch.setattr(importlib, "import_module", lambda name, *_: pytest.fail(f"{name} was imported"))
    for load in loads(folder):
        with pytest.raises(UserError, match=rf"model_index.json: {key}="):
            load()


def test_parts_are_never_asked_of_the_hub_and_pipelines_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="some/name is neither a folder nor found on the hub"):
        LatentVideoPipeline.from_pretrained("some/name")
    for cls in (VideoDiT, CausalVideoAutoencoder):
        with pytest.raises(UserError, match="there is no model folder some/name"):
            cls.from_pretrained("some/name")


@pytest.mark.parametrize("file", ["text_encoder/config.json", "tokenizer/tokenizer_config.json"])
def test_code_in_a_folder_is_not_run(folder, file):
    change(folder / file, auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    with pytest.raises(UserError, match=f"{Path(file).name}: auto_map="):
        load_pipeline(folder, "cpu")


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "nan", "adapter", "pickle", "truncated", "folder"])
def test_weights_that_are_not_the_models_are_named(folder, part, fault):
    file = folder / WEIGHTS[part]
    weights = load_file(file)
    name = max(weights, key=lambda key: weights[key].numel() * ("embed" not in key and "shared" not in key))
    match = name
    if fault == "missing":
        del weights[name]
    elif fault == "unexpected":
        weights["more.weight"], match = torch.zeros(2), r"unexpected \(more.weight"
    elif fault == "shape":
        weights[name] = torch.zeros(3)
    elif fault == "nan":
        weights[name].view(-1)[5] = float("nan")
    elif fault == "adapter":
        weights[name.replace(".weight", ".base_layer.weight")] = weights.pop(name)
        match = r"base_layer.*adapters in place"
    save_file(weights, file, metadata={"format": "pt"})
    if fault == "pickle":
        torch.save(weights, file.with_suffix(".bin"))
        file.unlink()
        match = r"\.bin can hold code"
    elif fault == "truncated":
        file.write_bytes(file.read_bytes()[:-50])
        match = rf"{file.name} cannot be loaded"
    elif fault == "folder":
        file.unlink()
        file.mkdir()
        match = f"{file.name} is a folder"
    with pytest.raises(UserError, match=match) as error:
        load_pipeline(folder, "cpu")
    assert str(folder / part) in str(error.value) and "\n" not in str(error.value)


def test_each_class_refuses_alone_what_it_would_fill_with_random_numbers(folder):
    loaders = {
        "vae": (load_vae, CausalVideoAutoencoder.from_pretrained),
        "transformer": (VideoDiT.from_pretrained,),
        "text_encoder": (lambda path: TextEncoder.from_folders(path, folder / "tokenizer"),),
    }
    for part, ways in loaders.items():
        weights = load_file(folder / WEIGHTS[part])
        name = next(name for name in weights if "norm" in name)
        save_file({k: v for k, v in weights.items() if k != name}, folder / WEIGHTS[part], metadata={"format": "pt"})
        for load in ways:
            with pytest.raises(UserError, match=rf"missing \({name}"):
                load(folder / part)


def test_a_foreign_vae_that_lacks_a_tensor_is_refused(tmp_path):
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    AutoencoderKLWan(**sizes).save_pretrained(tmp_path)
    assert load_vae(tmp_path).latent_channels == 4
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if k != "quant_conv.weight"}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"AutoencoderKLWan in its config.json: 1 missing \(quant_conv.weight\)"):
        load_vae(tmp_path)


@pytest.mark.parametrize(
    "file", ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"]
)
@pytest.mark.parametrize("fault", ["pipe", "folder", "out", "huge"])
def test_what_is_no_plain_file_of_the_folder_is_not_opened(folder, tmp_path, file, fault):
    path = folder / file
    away = path.rename(tmp_path / "away")
    if fault == "pipe":
        os.mkfifo(path)
    elif fault == "folder":
        path.mkdir()
    elif fault == "out":
        path.symlink_to(away)
    else:
        with path.open("wb") as sparse:
            sparse.truncate(10**9)
    with pytest.raises(UserError, match=path.name):
        load_pipeline(folder, "cpu")


def test_a_part_that_is_linked_from_elsewhere_is_refused(folder, tmp_path):
    (folder / "vae").rename(tmp_path / "vae")
    (folder / "vae").symlink_to(tmp_path / "vae")
    with pytest.raises(UserError, match="vae is a link that leads out"):
        load_pipeline(folder, "cpu")


def test_the_hubs_cache_links_to_its_blobs(folder, tmp_path):
    """snapshots/REVISION/... are links to blobs/ beside snapshots/."""
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    blobs.mkdir(parents=True)
    for i, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.rename(blobs / str(i)))
    assert load_pipeline(snapshot, "cpu").config.frames == 5


@pytest.mark.parametrize("index", [{}, {"weight_map": {"a": "../../x.safetensors"}}, {"weight_map": {"a": 3}}])
def test_shards_outside_the_folder_are_not_read(folder, index):
    file = folder / WEIGHTS["transformer"]
    file.rename(folder / "x.safetensors")
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="weight_map must name a .safetensors file of this folder"):
        load_pipeline(folder, "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_a_narrow_type_sample_on_a_cpu(tiny_pipeline, dtype):
    pipeline = LatentVideoPipeline.from_pretrained(tiny_pipeline, torch_dtype=dtype)
    assert pipeline.transformer.dtype == pipeline.vae.dtype == pipeline.text_encoder.dtype == dtype
    for precision in (None, torch.float32):
        (clip,) = pipeline(
            "a red 7", sampling=Sampling(steps=1, progress=False, precision=precision), output_type="uint8"
        ).frames
        assert clip.shape == (5, 32, 32, 3) and clip.float().std() > 1
    with pytest.raises(UserError, match="torch_dtype=torch.int8"):
        LatentVideoPipeline.from_pretrained(tiny_pipeline, torch_dtype=torch.int8)
    with pytest.raises(UserError, match="takes no revision"):
        LatentVideoPipeline.from_pretrained(tiny_pipeline, revision="main")


def test_parts_may_be_given(tiny_pipeline):
    vae = CausalVideoAutoencoder.from_pretrained(tiny_pipeline / "vae")
    text = T5EncoderModel.from_pretrained(tiny_pipeline / "text_encoder")
    pipeline = LatentVideoPipeline.from_pretrained(tiny_pipeline, vae=vae, text_encoder=text)
    assert pipeline.vae is vae and pipeline.text_encoder is text


def test_offloading_brings_each_part_to_the_device_where_it_is_used(tiny_pipeline):
    """`enable_model_cpu_offload` puts hooks before `forward`; a VAE is used by `encode` and `decode`."""
    pipeline = LatentVideoPipeline.from_pretrained(tiny_pipeline)
    woken = []

    class Waking(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            woken.append(type(module).__name__)
            return args, kwargs

    for name in ("vae", "transformer", "text_encoder"):
        add_hook_to_module(getattr(pipeline, name), Waking())
    latents = pipeline.encode([torch.zeros(5, 32, 32, 3, dtype=torch.uint8)])
    assert woken == ["CausalVideoAutoencoder"]
    pipeline.decode(latents)
    pipeline("a red 7", sampling=QUICK)
    assert woken[1] == woken[-1] == "CausalVideoAutoencoder" and {"VideoDiT", "T5EncoderModel"} < set(woken)
