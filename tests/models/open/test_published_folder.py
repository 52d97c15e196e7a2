"""Published repositories as diffusers writes them: what is known before weights are read, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from latentvid.errors import UserError
from latentvid.models.open import is_published, load_backbone, read_published

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def wan(repository, tmp_path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(repository("wan"), tmp_path / "wan"))


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "kind, task, image, experts, boundary, shift, size",
    [
        ("wan", "t2v", None, 1, None, 3.0, (81, 480, 832, 16.0)),
        ("wan_experts", "t2v", None, 2, 0.875, 12.0, (81, 720, 1280, 16.0)),
        ("wan_small", "t2v", "first", 1, None, 5.0, (121, 704, 1280, 24.0)),
        ("wan_image", "i2v", "wan", 2, 0.9, 5.0, (81, 480, 832, 16.0)),
    ],
)
def test_the_variant_is_told_from_index_and_configurations(
    repository, kind, task, image, experts, boundary, shift, size
):
    found = read_published(repository(kind))
    recipe = found.recipe
    assert (recipe.task, recipe.image, len(found.experts), found.boundary) == (task, image, experts, boundary)
    assert (recipe.scheduler["shift"], recipe.scheduler["whole_steps"], recipe.solver) == (shift, 1000, "unipc")
    assert (recipe.frames, recipe.height, recipe.width, recipe.fps) == size
    assert recipe.text[0].tokens == 512 and recipe.text[0].pad == "zero"
    assert found.parts["text_encoder"] == repository(kind) / "text_encoder" and is_published(repository(kind))


def test_backbones_have_the_weights_of_each_expert(repository):
    published = read_published(repository("wan_experts"))
    for part in published.experts:
        model, saved = load_backbone(published, part), load_file(published.parts[part] / WEIGHTS)
        held = model.raw.state_dict()
        assert held.keys() == saved.keys() and all(torch.equal(held[name], saved[name]) for name in saved)
        assert not model.training


def test_shards_and_bf16(wan):
    """In bf16 the class keeps its own exceptions in fp32."""
    pipeline = WanPipeline.from_pretrained(wan)
    (wan / "transformer" / WEIGHTS).unlink()
    pipeline.transformer.save_pretrained(wan / "transformer", max_shard_size="10KB")
    assert len(list((wan / "transformer").glob("*.safetensors"))) > 2
    model = load_backbone(read_published(wan), dtype=torch.bfloat16)
    types = {name: p.dtype for name, p in model.raw.named_parameters()}
    assert types["blocks.0.attn1.to_q.weight"] == torch.bfloat16 == model.dtype
    assert types["scale_shift_table"] == types["blocks.0.norm2.weight"] == torch.float32
    held = pipeline.transformer.blocks[0].attn1.to_q.weight
    assert torch.equal(model.raw.blocks[0].attn1.to_q.weight, held.bfloat16())


def test_weights_must_be_whole_and_no_more(wan):
    file = wan / "transformer" / WEIGHTS
    whole = load_file(file)
    published = read_published(wan)

    def refused(weights: dict, said: str) -> None:
        save_file(weights, file)
        with pytest.raises(UserError, match=said):
            load_backbone(published)

    refused({k: v for k, v in whole.items() if k != "proj_out.bias"}, r"1 missing \(proj_out.bias\)")
    refused(whole | {"more.weight": torch.zeros(2)}, r"1 unexpected \(more.weight\)")
    refused(
        whole | {"proj_out.bias": torch.full_like(whole["proj_out.bias"], torch.nan)}, "nan or infinite in proj_out"
    )
    save_file(whole | {"blocks.0.attn2.norm_added_q.weight": torch.zeros(24)}, file)  # as published ones have
    assert load_backbone(published).raw.config.num_layers == 2


def test_a_folder_saved_with_adapters_in_place_is_refused(wan):
    """diffusers loads it without an error, and with random numbers for what is under other names."""
    raw = load_backbone(read_published(wan)).raw
    raw.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    shutil.rmtree(wan / "transformer")
    raw.save_pretrained(wan / "transformer")
    with pytest.raises(UserError, match="saved with adapters in place: merge or unload them"):
        load_backbone(read_published(wan))


@pytest.mark.parametrize(
    "values, said",
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "_class_name='StableDiffusionXLPipeline': must be one of"),
        ({"_class_name": "StableDiffusionPipeline"}, "transformer=.*StableDiffusionPipeline has no such part"),
        ({"transformer": ["diffusers", "UNet2DModel"]}, "transformer=.*UNet2DModel.*: must be one of .*Wan"),
        ({"text_encoder": ["my_package", "T5EncoderModel"]}, "text_encoder=.*my_package.*nothing else is imported"),
        ({"vae": [None, None]}, "vae is missing: WanPipeline needs it"),
        ({"extra": ["os", "system"]}, "extra=.*has no such part; nothing is imported"),
        ({"boundary_ratio": 0.9}, "boundary_ratio and transformer_2 belong together"),
    ],
)
def test_what_the_tables_do_not_name_is_refused(wan, values, said):
    change(wan / "model_index.json", **values)
    with pytest.raises(UserError, match=said):
        read_published(wan)


def test_what_is_no_repository_is_said(tmp_path, tiny_pipeline, wan, monkeypatch):
    assert not is_published(tiny_pipeline) and not is_published(tmp_path / "none")
    with pytest.raises(UserError, match="it holds one part of a repository"):
        read_published(wan / "transformer")
    with pytest.raises(UserError, match="there is no model folder"):
        read_published(tmp_path / "none")
    (wan / "vae").rename(wan / "elsewhere")
    with pytest.raises(UserError, match="vae is missing"):
        read_published(wan)


def test_a_hub_name_is_read_from_the_cache_where_the_hub_does_not_answer(wan, tmp_path, monkeypatch):
    from latentvid.models import hub

    found = []

    def cached(name, *more, local_files_only=False, **options):
        if not local_files_only:
            raise OSError("no network")
        found.append((name, options.get("allow_patterns")))
        return str(wan / more[0]) if more else str(wan)

    monkeypatch.setattr(hub, "hf_hub_download", cached)
    monkeypatch.setattr(hub, "snapshot_download", cached)
    assert is_published("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert read_published("Wan-AI/Wan2.1-T2V-1.3B-Diffusers").folder == wan
    assert found[1][0] == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    assert set(found[1][1]) == {
        "model_index.json",
        *(f"{part}/*" for part in ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")),
    }
    monkeypatch.setattr(hub, "hf_hub_download", lambda *more, **options: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UserError, match="nor found on the hub .no network"):
        read_published("Wan-AI/other")
