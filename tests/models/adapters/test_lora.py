"""LoRA in transformers: written for diffusers and read by it without a difference; several at once; merged; refused."""

import copy
import json

import pytest
import torch
from diffusers import WanTransformer3DModel
from lora_models import FAMILIES, added, model, random_changes
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, safe_open

from latentvid.errors import UserError
from latentvid.models.adapters.lora import adapters_in, changes_in, load_lora, merge, save_lora, unload
from latentvid.models.open import packed
from latentvid.models.saved import check_saved, load_component
from latentvid.models.transformer import VideoDiT


def trained(family, alpha=8, rank=4, **more):
    """As training leaves it: peft's layers, with matrices that are not zero."""
    raw, family = model(family, **more), FAMILIES[family]
    names = [name for name in random_changes(raw, family.targets)]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, rank_pattern={"to_k": 2})
    inject_adapter_in_model(config, raw)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in raw.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return raw


def same_tensors(one, other):
    """Whether the LoRA of two models is the same to the last bit, alpha put into B."""
    a, b = (changes_in(raw, adapters_in(raw)[0]) for raw in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[n].a, b[n].a) and torch.equal(a[n].b, b[n].b) for n in a)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.pipeline])
def test_diffusers_reads_what_is_written(family, tmp_path):
    """Its pipeline has the LoRA of the model that was trained without any difference, metadata read or not."""
    run, raw = FAMILIES[family].run, trained(family)
    with torch.no_grad():
        before, want = run(model(family)), run(raw)
        path = save_lora(raw, tmp_path)
        theirs, ours, bare = model(family), model(family), model(family)
        FAMILIES[family].pipeline(theirs).load_lora_weights(tmp_path)
        load_lora(ours, tmp_path)
        FAMILIES[family].pipeline(bare).load_lora_weights(load_file(path))
        assert (want - before).abs().max() > 0.1
        for other in (theirs, ours, bare):
            assert same_tensors(other, raw)
        close(run(theirs), want, 2e-6)  # nothing but another rounding of the same products


def close(got, want, tolerance):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * max(1.0, float(want.abs().max())))


def test_any_alpha_is_folded(tmp_path):
    run, raw = FAMILIES["wan"].run, trained("wan", alpha=5)
    save_lora(raw, tmp_path)
    theirs, ours = model("wan"), model("wan")
    FAMILIES["wan"].pipeline(theirs).load_lora_weights(tmp_path)
    load_lora(ours, tmp_path)
    assert same_tensors(theirs, ours)
    with torch.no_grad():
        close(run(theirs), run(raw), 6e-6)
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as held:
        noted = json.loads(held.metadata()["lora_adapter_metadata"])
    assert noted["transformer.r"] == noted["transformer.lora_alpha"] == 4
    assert noted["transformer.rank_pattern"] == noted["transformer.alpha_pattern"] and noted["transformer.rank_pattern"]


@pytest.mark.parametrize("family", FAMILIES)
def test_comfyuis_names_come_back(family, tmp_path):
    raw = trained(family)
    path = save_lora(raw, tmp_path, naming="comfyui", name="for_comfyui.safetensors")
    assert all(key.startswith("diffusion_model.") for key in load_file(path))
    again = model(family)
    load_lora(again, path)
    wanted, found = changes_in(raw), changes_in(again, adapters_in(again)[0])
    assert wanted.keys() == found.keys()
    for name, change in wanted.items():
        assert torch.equal(found[name].a, change.a) and torch.equal(found[name].b, change.b), name


def test_comfyuis_names_are_the_authors():
    from latentvid.models.adapters.writing import _for_comfyui

    for family, name in (
        ("wan", "blocks.0.self_attn.q"),
        ("hunyuan", "double_blocks.1.img_attn_qkv"),
        ("mochi", "blocks.0.attn.qkv_x"),
        ("ltx", "transformer_blocks.0.attn1.to_q"),
    ):
        raw = trained(family)
        assert f"diffusion_model.{name}.lora_A.weight" in _for_comfyui(raw, changes_in(raw))[0], family


def test_several_at_once_with_scales_merged_and_unloaded(tmp_path):
    run, raw = FAMILIES["wan"].run, model("wan")
    save_lora(trained("wan"), tmp_path / "one")
    save_lora(trained("wan", alpha=4), tmp_path / "two")
    one, two = (changes_in(trained("wan", alpha=alpha)) for alpha in (8, 4))
    want = added(added(model("wan"), scaled(one, 0.5)), scaled(two, -1.5))
    names = [load_lora(raw, tmp_path / "one", 0.5), load_lora(raw, tmp_path / "two", -1.5)]
    assert names == adapters_in(raw) == ["pytorch_lora_weights", "pytorch_lora_weights_2"]
    assert all(p.requires_grad == (".adapters." not in n) for n, p in raw.named_parameters())
    with torch.no_grad():
        plain, wanted = run(model("wan")), run(want)
        close(run(raw), wanted, 1e-5)
        apart = copy.deepcopy(raw)
        unload(apart)
        close(run(apart), plain, 2e-6)
        assert not adapters_in(apart)
        merge(raw)
        close(run(raw), wanted, 1e-5)
    assert raw.state_dict().keys() == model("wan").state_dict().keys()
    assert load_lora(raw, tmp_path / "one", name="style.v1") == "style_v1"  # as any other model


def scaled(changes, scale):
    return {name: type(c)(c.a, c.b * scale, c.bias) for name, c in changes.items()}


def test_on_a_backbone_and_in_the_layers_type(tmp_path):
    save_lora(trained("wan"), tmp_path)
    backbone = packed(model("wan").to(torch.bfloat16))
    name = load_lora(backbone, tmp_path)
    lora = [p for n, p in backbone.named_parameters() if ".adapters." in n]
    assert lora and all(p.dtype == torch.bfloat16 for p in lora) and adapters_in(backbone) == [name]
    with pytest.raises(UserError, match="no LoRA 'default' to save: it has pytorch_lora_weights"):
        save_lora(backbone, tmp_path)


def test_loading_draws_no_random_numbers(tmp_path):
    save_lora(trained("wan"), tmp_path)
    raw = model("wan")
    before = torch.get_rng_state()
    load_lora(raw, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_merge_of_nan_is_refused(tmp_path):
    raw = trained("wan")
    with torch.no_grad():
        raw.blocks[0].attn1.to_q.lora_A["default"].weight.fill_(torch.nan)
    with pytest.raises(UserError, match="cannot be merged"):
        merge(raw)


def test_folders_saved_with_adapters_in_place_are_refused(tmp_path):
    raw = trained("wan")
    raw.save_pretrained(tmp_path / "wan")
    WanTransformer3DModel.from_pretrained(tmp_path / "wan")  # diffusers says nothing: weights are random numbers
    dit = VideoDiT(latent_channels=4, width=48, depth=2, heads=2, text_width=24)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["query"]), dit)
    dit.save_pretrained(tmp_path / "dit")
    with pytest.raises(UserError, match="adapters in place: merge or unload them"):
        check_saved(WanTransformer3DModel, tmp_path / "wan")  # which all our loaders of weights do
    for load in (VideoDiT.from_pretrained, lambda folder: load_component(VideoDiT, folder)):
        with pytest.raises(UserError, match="adapters in place: merge or unload them"):
            load(tmp_path / "dit")
    unload(raw)
    raw.save_pretrained(tmp_path / "plain")
    check_saved(WanTransformer3DModel, tmp_path / "plain")
