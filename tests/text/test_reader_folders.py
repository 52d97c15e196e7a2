"""Folders of published text encoders: what is no whole encoder, or asks for code, is refused and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import text_models as small
import torch
from safetensors.torch import load_file, save_file

import latentvid.text.folder
import latentvid.text.loading
from latentvid.errors import UserError
from latentvid.text import TextReader, load_reader
from latentvid.text.policy import Reading


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    words = small.llama_tokenizer()
    small.llama(words).save_pretrained(tmp_path / "text_encoder")
    words.save_pretrained(tmp_path / "tokenizer")
    return {name: tmp_path / name for name in ("text_encoder", "tokenizer")}


def load(folders: dict[str, Path], **options) -> TextReader:
    return load_reader(folders, [Reading(tokens=40, layer=-3)], **options)


def settings(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("part", "file", "values", "message"),
    [
        (
            "text_encoder",
            "config.json",
            {"model_type": "gpt2"},
            r"model_type='gpt2': must be t5, umt5, clip",
        ),
        ("text_encoder", "config.json", {"auto_map": {"AutoModel": "x.Y"}}, "asks for code of its own"),
        ("text_encoder", "config.json", {"rope_parameters": {"auto_map": "x"}}, "asks for code of its own"),
        ("text_encoder", "config.json", {"attn_implementation": "someone/kernel"}, "asks for code of the hub"),
        ("text_encoder", "config.json", {"hidden_size": 4096}, r"tells of [\d,]+ parameters, and the weights have"),
        ("text_encoder", "config.json", {"num_hidden_layers": 5}, r"is no LLAMA: its weights lack 9 tensors"),
        ("text_encoder", "config.json", {"intermediate_size": 33}, r"cannot be loaded as a LLAMA"),
        ("text_encoder", "config.json", {"num_attention_heads": "two"}, r"config.json makes no LLAMA"),
        (
            "text_encoder",
            "config.json",
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "quantised by 'bitsandbytes': install it",
        ),
        ("text_encoder", "config.json", {"quantization_config": {"quant_method": "awq"}}, "quantised by 'awq'"),
        ("tokenizer", "tokenizer_config.json", {"tokenizer_class": "Evil"}, "tokenizer_class='Evil': must be ByT5"),
        ("tokenizer", "tokenizer_config.json", {"auto_map": ["x.Y"]}, "asks for code of its own"),
    ],
)
def test_what_a_folder_may_not_say(folders, monkeypatch, part, file, values, message):
    monkeypatch.setattr(latentvid.text.folder, "find_spec", lambda name: None)
    settings(folders[part] / file, **values)
    with pytest.raises(UserError, match=message):
        load(folders)


def test_weights_that_are_incomplete_or_no_numbers_are_refused(folders):
    file = folders["text_encoder"] / "model.safetensors"
    whole = load_file(file)
    name = "layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in whole.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"is no LLAMA: its weights lack 1 tensors, e.g. {name}"):
        load(folders)
    save_file(whole | {name: whole[name] * torch.nan}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"nan or infinite in {name}"):
        load(folders)
    file.rename(file.with_name("pytorch_model.bin"))
    with pytest.raises(UserError, match=r"pytorch_model.bin can hold code .* convert it to safetensors"):
        load(folders)


def test_a_folder_that_is_not_there_is_named(folders):
    with pytest.raises(UserError, match=r"the model has no folder tokenizer.* it has text_encoder"):
        load({"text_encoder": folders["text_encoder"]})
    (folders["tokenizer"] / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer \(tokenizer.json or spiece.model or tokenizer.model or"):
        load(folders)


def test_a_tokenizer_of_another_model_is_refused(folders):
    big = small.llama_tokenizer()
    big.add_tokens([f"word{i}" for i in range(500)])
    big.save_pretrained(folders["tokenizer"])
    with pytest.raises(UserError, match="take both from the same model"):
        load(folders)


def test_the_broken_connectors_of_ltx2_are_named(folders, tmp_path):
    folders["connectors"] = tmp_path / "connectors"
    folders["connectors"].mkdir()
    config = folders["connectors"] / "config.json"
    reading = Reading(tokens=16, layer="all", side="left", connectors="connectors")
    for told, message in (
        ({"_class_name": "Evil"}, "_class_name='Evil': must be LTX2TextConnectors"),
        ({"_class_name": "LTX2TextConnectors", "knows": 1}, "knows is unknown to this diffusers"),
        ({"_class_name": "LTX2TextConnectors"}, "has no weights"),
    ):
        config.write_text(json.dumps(told))
        with pytest.raises(UserError, match=message):
            load_reader(folders, [reading])


def test_quantised_weights_need_their_package(folders, monkeypatch):
    with pytest.raises(UserError, match=r"quantization 'int3': must be bitsandbytes-8bit, "):
        load(folders, quantization="int3")
    monkeypatch.setattr(latentvid.text.loading, "find_spec", lambda name: None)
    for name, package in (("bitsandbytes-8bit", "bitsandbytes"), ("torchao-int8", "torchao")):
        with pytest.raises(UserError, match=f"quantization {name} needs the package {package}: pip install {package}"):
            load(folders, quantization=name)
    monkeypatch.setattr(latentvid.text.loading, "find_spec", lambda name: True)
    asked = {}

    def from_pretrained(source, **options):
        asked.update(options)
        raise RuntimeError("asked")

    monkeypatch.setattr(small.LlamaModel, "from_pretrained", from_pretrained)
    with pytest.raises(UserError, match="cannot be loaded as a LLAMA: asked"):
        load(folders, quantization="bitsandbytes-4bit", dtype=torch.bfloat16)
    about = asked["quantization_config"]
    assert about.load_in_4bit and about.bnb_4bit_compute_dtype == torch.bfloat16 and asked["use_safetensors"]


@pytest.mark.parametrize("name", ["clip", "llama", "gemma"])
def test_weights_under_the_names_of_published_files_are_found(tmp_path, name):
    """Those that older versions of transformers wrote, and those of classes with a head."""
    words = getattr(small, f"{name}_tokenizer")()
    getattr(small, name)(words).save_pretrained(tmp_path / "text_encoder")
    words.save_pretrained(tmp_path / "tokenizer")
    folders = {part: tmp_path / part for part in ("text_encoder", "tokenizer")}
    reading = Reading(tokens=40, gives="pooled" if name == "clip" else "text")
    readings = [reading] if name != "clip" else [Reading(tokens=40), reading]
    wanted = load_reader(folders, readings).encode(["two cats"])
    file = folders["text_encoder"] / "model.safetensors"
    held = load_file(file)
    if name == "clip":
        held = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in held.items()}
    elif name == "llama":
        held = {f"model.{key}": value for key, value in held.items()}
        held["lm_head.weight"] = torch.zeros(len(words), 24)
    else:
        held = {key.replace("model.", ""): value for key, value in held.items() if not key.startswith("lm_head")}
        held = {key.replace("language_", "language_model.model."): value for key, value in held.items()}
        assert any(key.startswith("language_model.model.layers.0.") for key in held), sorted(held)[:5]
    save_file(held, file, metadata={"format": "pt"})
    found = load_reader(folders, readings).encode(["two cats"])
    assert torch.equal(found.states, wanted.states)
    assert name != "clip" or torch.equal(found.pooled, wanted.pooled)
