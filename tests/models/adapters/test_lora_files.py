"""Files of LoRA as the world writes them, made here of known matrices: each is read whole, or refused."""

import json
import re

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ltx_transformer_checkpoint_to_diffusers,
    convert_wan_transformer_to_diffusers,
)
from lora_models import FAMILIES, added, matrices, model
from peft import LoraConfig
from safetensors.torch import save_file

from latentvid.errors import UserError
from latentvid.models.adapters.layer_names import foreign_places, layers_of
from latentvid.models.adapters.lora import load_lora, unload
from latentvid.models.adapters.lora_files import Change, read_lora
from latentvid.models.transformer import VideoDiT

D = 32  # width of all small models
QKV = ("to_q", "to_k", "to_v")
# what the authors call a layer: its outputs, its inputs, and the rows of it that each of diffusers' layers has; written
# here from the papers' code, not from the package
WAN = {
    "blocks.0.self_attn.q": (D, D, {"blocks.0.attn1.to_q": [(0, D)]}),
    "blocks.1.self_attn.o": (D, D, {"blocks.1.attn1.to_out.0": [(0, D)]}),
    "blocks.0.cross_attn.k": (D, D, {"blocks.0.attn2.to_k": [(0, D)]}),
    "blocks.1.cross_attn.v": (D, D, {"blocks.1.attn2.to_v": [(0, D)]}),
    "blocks.0.ffn.0": (48, D, {"blocks.0.ffn.net.0.proj": [(0, 48)]}),
    "blocks.1.ffn.2": (D, 48, {"blocks.1.ffn.net.2": [(0, D)]}),
    "time_projection.1": (6 * D, D, {"condition_embedder.time_proj": [(0, 6 * D)]}),
    "text_embedding.0": (D, 24, {"condition_embedder.text_embedder.linear_1": [(0, D)]}),
    "time_embedding.2": (D, D, {"condition_embedder.time_embedder.linear_2": [(0, D)]}),
    "head.head": (16, D, {"proj_out": [(0, 16)]}),
}
LTX = {
    "transformer_blocks.0.attn1.to_q": (D, D, {"transformer_blocks.0.attn1.to_q": [(0, D)]}),
    "transformer_blocks.1.attn2.to_out.0": (D, D, {"transformer_blocks.1.attn2.to_out.0": [(0, D)]}),
    "transformer_blocks.1.ff.net.0.proj": (4 * D, D, {"transformer_blocks.1.ff.net.0.proj": [(0, 4 * D)]}),
    "patchify_proj": (D, 8, {"proj_in": [(0, D)]}),
    "adaln_single.linear": (6 * D, D, {"time_embed.linear": [(0, 6 * D)]}),
}
COGVIDEOX = {
    "transformer_blocks.0.attn1.to_k": (D, D, {"transformer_blocks.0.attn1.to_k": [(0, D)]}),
    "transformer.layers.1.attention.query_key_value": (
        3 * D,
        D,
        {f"transformer_blocks.1.attn1.{n}": [(i * D, (i + 1) * D)] for i, n in enumerate(QKV)},
    ),
    "transformer.layers.0.mlp.dense_4h_to_h": (D, 4 * D, {"transformer_blocks.0.ff.net.2": [(0, D)]}),
}
HUNYUAN = {
    "double_blocks.0.img_attn_qkv": (
        3 * D,
        D,
        {f"transformer_blocks.0.attn.{n}": [(i * D, (i + 1) * D)] for i, n in enumerate(QKV)},
    ),
    "double_blocks.1.txt_attn_qkv": (
        3 * D,
        D,
        {f"transformer_blocks.1.attn.add_{n}_proj": [(i * D, (i + 1) * D)] for i, n in enumerate("qkv")},
    ),
    "double_blocks.0.img_attn_proj": (D, D, {"transformer_blocks.0.attn.to_out.0": [(0, D)]}),
    "double_blocks.0.txt_mlp.fc1": (4 * D, D, {"transformer_blocks.0.ff_context.net.0.proj": [(0, 4 * D)]}),
    "double_blocks.1.img_mod.linear": (6 * D, D, {"transformer_blocks.1.norm1.linear": [(0, 6 * D)]}),
    "single_blocks.1.linear1": (
        7 * D,
        D,
        {f"single_transformer_blocks.1.attn.{n}": [(i * D, (i + 1) * D)] for i, n in enumerate(QKV)}
        | {"single_transformer_blocks.1.proj_mlp": [(3 * D, 7 * D)]},
    ),
    "single_blocks.0.linear2": (D, 5 * D, {"single_transformer_blocks.0.proj_out": [(0, D)]}),
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv": (
        3 * D,
        D,
        {
            f"context_embedder.token_refiner.refiner_blocks.0.attn.{n}": [(i * D, (i + 1) * D)]
            for i, n in enumerate(QKV)
        },
    ),
    "final_layer.adaLN_modulation.1": (2 * D, D, {"norm_out.linear": [(D, 2 * D), (0, D)]}),
}
HUNYUAN15 = {k: v for k, v in HUNYUAN.items() if "single" not in k} | {
    "double_blocks.1.img_attn_q": (D, D, {"transformer_blocks.1.attn.to_q": [(0, D)]}),
}
MOCHI = {
    "blocks.0.attn.qkv_x": (
        3 * D,
        D,
        {f"transformer_blocks.0.attn1.{n}": [(i * D, (i + 1) * D)] for i, n in enumerate(QKV)},
    ),
    "blocks.1.attn.qkv_y": (
        3 * D,
        24,
        {f"transformer_blocks.1.attn1.add_{n}_proj": [(i * D, (i + 1) * D)] for i, n in enumerate("qkv")},
    ),
    "blocks.0.attn.proj_x": (D, D, {"transformer_blocks.0.attn1.to_out.0": [(0, D)]}),
    "blocks.2.mod_y": (24, D, {"transformer_blocks.2.norm1_context.linear_1": [(0, 24)]}),
    "final_layer.mod": (2 * D, D, {"norm_out.linear": [(D, 2 * D), (0, D)]}),
}
ORIGINAL = dict(wan=WAN, ltx=LTX, cogvideox=COGVIDEOX, hunyuan=HUNYUAN, hunyuan15=HUNYUAN15, mochi=MOCHI)
ALPHA, RANK = 5.0, 3


def authors_lora(family, alpha=ALPHA):
    """A and B of each of the authors' layers, and the dense changes of diffusers' layers that they come to."""
    made, dense = {}, {}
    for seed, (name, (rows, into, parts)) in enumerate(ORIGINAL[family].items()):
        rank = RANK + seed % 2
        a, b = made[name] = matrices(into, rows, rank, seed)
        whole = alpha / rank * (b @ a)
        for layer, spans in parts.items():
            change = torch.cat([whole[start:stop] for start, stop in spans])
            dense[layer] = Change(torch.eye(into), change + (dense[layer].b if layer in dense else 0))
    return made, dense


def mochi_gate(raw, made, dense, alpha=ALPHA):
    """SwiGLU's value and gate stand the other way round in diffusers."""
    rows, into = raw.transformer_blocks[1].ff.net[0].proj.weight.shape
    a, b = made["blocks.1.mlp_x.w1"] = matrices(into, rows, RANK, 77)
    whole = alpha / RANK * (b @ a)
    dense["transformer_blocks.1.ff.net.0.proj"] = Change(torch.eye(into), torch.cat(whole.chunk(2)[::-1]))


def kohya(made):
    tensors = {}
    for name, (a, b) in made.items():
        key = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(ALPHA)}
    return tensors


def comfyui(made):
    tensors = {}
    for name, (a, b) in made.items():
        key = f"diffusion_model.{name}"
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b * (ALPHA / len(a))}
    return tensors


def comfyui_alpha(made):
    tensors = {}
    for name, (a, b) in made.items():
        key = f"model.diffusion_model.{name}"
        tensors |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(ALPHA)}
    return tensors


def without_prefix(made):
    tensors = {}
    for name, (a, b) in made.items():
        tensors |= {f"{name}.lora_A.default.weight": a, f"{name}.lora_B.default.weight": b * (ALPHA / len(a))}
    return tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_what_communities_write_is_read(family, tmp_path):
    run, raw, file = FAMILIES[family].run, model(family), tmp_path / "lora.safetensors"
    made, dense = authors_lora(family)
    if family == "mochi":
        mochi_gate(raw, made, dense)
    with torch.no_grad():
        before, want = run(raw), run(added(model(family), dense))
        assert (want - before).abs().max() > 0.1
        for form in (kohya, comfyui, comfyui_alpha, without_prefix):
            save_file(form(made), file)
            load_lora(raw, file)
            torch.testing.assert_close(
                run(raw), want, rtol=0, atol=6e-6 * max(1.0, float(want.abs().max())), msg=form.__name__
            )
            unload(raw)


@pytest.mark.parametrize(
    ("family", "convert"),
    [
        ("wan", convert_wan_transformer_to_diffusers),
        ("ltx", convert_ltx_transformer_checkpoint_to_diffusers),
    ],
)
def test_names_are_those_of_whole_checkpoints(family, convert):
    """Every name of the table, against diffusers' conversion of the authors' checkpoints."""
    raw = model(family)
    found = foreign_places(raw)
    wanted = convert({f"{name}.weight": torch.zeros(1) for name in found})
    assert {f"{place.layers[0]}.weight" for place in found.values()} == wanted.keys()
    assert [len(place.layers) for place in found.values()] == [1] * len(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_authors_names_reach_every_layer_of_attention_and_of_the_mlps(family):
    layers = layers_of(model(family))
    found = {name for place in foreign_places(model(family)).values() for name in place.layers}
    assert found and found <= layers.keys()
    if family != "ltx":  # whose blocks have the same names in both
        assert {name for name in layers if re.search(r"blocks\.\d+\.(attn|ff)", name)} <= found


def write(path, tensors, **header):
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt", **header})
    return path


def test_alpha_of_diffusers_metadata_and_of_pefts_config(tmp_path):
    raw = model("wan")
    a, b = matrices(D, D, 4, 0)
    c, d = matrices(D, D, 2, 1)
    one, two = "blocks.0.attn1.to_q", "blocks.1.attn2.to_k"
    config = LoraConfig(r=4, lora_alpha=6, rank_pattern={"attn2.to_k": 2}, alpha_pattern={"attn2.to_k": 8})
    noted = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    tensors = {
        f"{n}.lora_{m}.weight": v for n, *pair in ((one, a, b), (two, c, d)) for m, v in zip("AB", pair, strict=True)
    }
    header = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in noted.items()})}
    write(tmp_path / "d.safetensors", {f"transformer.{k}": v for k, v in tensors.items()}, **header)
    folder = tmp_path / "peft"
    folder.mkdir()
    write(folder / "adapter_model.safetensors", {f"base_model.model.{k}": v for k, v in tensors.items()})
    (folder / "adapter_config.json").write_text(json.dumps(noted))
    for file in (tmp_path / "d.safetensors", folder):
        found = read_lora(raw, file)
        torch.testing.assert_close(found[one].b, b * 1.5)
        torch.testing.assert_close(found[two].b, d * 4.0)
        assert found[one].rank == 4 and found[two].rank == 2
    noted["use_rslora"] = True
    (folder / "adapter_config.json").write_text(json.dumps(noted))
    torch.testing.assert_close(read_lora(raw, folder)[one].b, b * 3.0)


def test_older_names_of_diffusers_convolutions_and_changes_of_biases(tmp_path):
    raw, run = model("wan"), FAMILIES["wan"].run
    a, b = matrices(D, D, 2, 0)
    kernel, out = matrices((4, 1, 2, 2), D, 2, 1)
    shift, whole = torch.linspace(-1, 1, D), torch.randn(16, D, generator=torch.Generator().manual_seed(5)) * 0.2
    tensors = {
        "transformer.blocks.0.attn1.to_q.lora.down.weight": a,
        "transformer.blocks.0.attn1.to_q.lora.up.weight": b,
        "patch_embedding.lora_down.weight": kernel,
        "patch_embedding.lora_up.weight": out[..., None, None, None],
        "diffusion_model.blocks.1.cross_attn.o.diff_b": shift,
        "diffusion_model.head.head.diff": whole,
        "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.zeros(D),  # all zeros: needs no place
    }
    dense = {
        "blocks.0.attn1.to_q": Change(a, b),
        "patch_embedding": Change(kernel, out),
        "blocks.1.attn2.to_out.0": Change(torch.zeros(1, D), torch.zeros(D, 1), shift),
        "proj_out": Change(whole, torch.eye(16)),
    }
    file = write(tmp_path / "x.safetensors", tensors)
    with torch.no_grad():
        want = run(added(model("wan"), dense))
        load_lora(raw, file)
        torch.testing.assert_close(run(raw), want, rtol=0, atol=6e-6 * float(want.abs().max()))


def lora_of(name, into=D, rows=D, rank=2):
    a, b = matrices(into, rows, rank, 0)
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}


def of_layer(stem, **shapes):
    return {f"blocks.0.attn1.to_q.{stem}_{piece}": torch.ones(shape) for piece, shape in shapes.items()}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            lora_of("blocks.7.attn1.to_q"),
            "2 of its 2 tensors find no place.*blocks.7.attn1.to_q.lora_A.*another",
        ),
        (lora_of("diffusion_model.blocks.0.self_attn.qq") | lora_of("blocks.0.attn1.to_q"), "2 of its 4 tensors"),
        (lora_of("lora_unet_blocks_0_self_attn_x"), "lora_unet_blocks_0_self_attn_x"),
        (lora_of("blocks.0.attn1.to_q", into=16), r"model of another size"),
        ({"blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, D)}, "blocks.0.attn1.to_q: a alone"),
        ({"blocks.0.attn1.to_q.lokr_w1": torch.ones(2, 2)}, "blocks.0.attn1.to_q: lokr_w1 alone"),
        ({"blocks.0.attn1.to_q.hada_w1_a": torch.ones(D, 2)}, "blocks.0.attn1.to_q: hada_w1_a alone"),
        ({"blocks.0.attn1.to_q.dora_scale": torch.ones(D)}, "blocks.0.attn1.to_q: magnitude alone"),
        ({"blocks.0.attn1.to_q.oft_blocks": torch.ones(2, 2)}, "kind OFT"),
        (lora_of("blocks.0.attn1.to_q") | {"blocks.0.attn1.to_q.dora_scale": torch.ones(1, D)}, "layer's inputs"),
        (lora_of("blocks.0.attn1.to_q") | {"blocks.0.attn1.to_q.dora_scale": torch.ones(7, 1)}, "another size"),
        (lora_of("blocks.0.attn1.to_q") | lora_of("blocks.0.self_attn.q"), None),  # one layer by two names: their sum
        (lora_of("blocks.0.attn1.to_q") | lora_of("transformer.blocks.0.attn1.to_q"), None),
        ({"blocks.0.self_attn.norm_q.diff": torch.ones(D)}, "1 of its 1 tensors"),
        ({"blocks.0.attn1.to_q.alpha": torch.tensor(4.0)}, "holds no LoRA"),
        (lora_of("blocks.0.attn1.to_q") | {"text_encoder.x.lora_A.weight": torch.ones(2, 2)}, "text_encoder.x"),
        ({k: v * torch.nan for k, v in lora_of("blocks.0.attn1.to_q").items()}, "nan or infinite"),
        (lora_of("blocks.0.attn1.to_q", rank=0), "to_q.lora_A.weight is empty"),
        ({k: torch.tensor(1.0) for k in lora_of("blocks.0.attn1.to_q")}, "is no matrix"),
        ({k: v.to(torch.int8) for k, v in lora_of("blocks.0.attn1.to_q").items()}, "int8, whose scale is not said"),
        (lora_of("blocks.0.attn1.to_q") | {"blocks.0.attn1.to_q.alpha": torch.zeros(0)}, "alpha is empty"),
        (lora_of("blocks.0.attn1.to_q") | {"blocks.0.attn1.to_q.lora_mid.weight": torch.ones(2, 5)}, "another size"),
        (of_layer("hada", w1_a=(D, 2), w1_b=(2, D), w2_a=(D, 2), w2_b=(3, D)), "another size"),
        (of_layer("hada", w1_a=(2, D), w1_b=(2, D), w2_a=(2, D), w2_b=(2, D), t1=(2, 3), t2=(2, 2)), "another size"),
        (of_layer("lokr", w1_a=(4, 2), w1_b=(3, 4), w2=(D // 4, D // 4)), "another size"),
        (of_layer("lokr", w1=(4, 4), w2=(D // 4, D // 4, 3, 3)), "another size"),
        (of_layer("lokr", w1=(4, 4), w2_a=(2, D // 4), w2_b=(2, D // 4), t2=(3, 2)), "another size"),
    ],
)
def test_what_finds_no_place_is_refused(tensors, said, tmp_path):
    raw, file = model("wan"), write(tmp_path / "x.safetensors", tensors)
    if said is None:
        a, b = matrices(D, D, 2, 0)
        found = read_lora(raw, file)["blocks.0.attn1.to_q"]
        torch.testing.assert_close(found.b @ found.a, 2 * b @ a)
        return
    with pytest.raises(UserError, match=said):
        load_lora(raw, file)
    assert not hasattr(raw, "peft_config")


def test_files_that_are_no_lora(tmp_path):
    raw = model("wan")
    (tmp_path / "lora.pt").write_bytes(b"x")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "two" / f"{name}.safetensors", lora_of("blocks.0.attn1.to_q"))
    for name, said in (
        ("lora.pt", "can hold code"),
        ("broken.safetensors", "cannot be read"),
        ("two", "holds 2 files"),
        ("none.safetensors", "give a LoRA"),
    ):
        with pytest.raises(UserError, match=said):
            read_lora(raw, tmp_path / name)


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        ({"alpha_pattern": {"(blocks": 4}}, "no pattern"),
        ({"alpha_pattern": "to_q"}, "no numbers by layers' names"),
        ({"alpha_pattern": {"to_q": "4"}}, "alpha_pattern of to_q is '4', not a number"),
        ({"alpha_pattern": {"to_q": torch.inf}}, "alpha_pattern of to_q is inf, not a number"),
        ({"rank_pattern": {"to_q": 0}}, "rank_pattern of to_q is 0, not a rank"),
        ({"r": 0}, "r is 0, not a rank"),
        ({"lora_alpha": torch.nan}, "lora_alpha is nan, not a number"),
    ],
)
def test_broken_metadata_is_refused(noted, said, tmp_path):
    whole = {f"transformer.{key}": value for key, value in ({"r": 2, "lora_alpha": 2} | noted).items()}
    file = write(tmp_path / "x.safetensors", lora_of("blocks.0.attn1.to_q"), lora_adapter_metadata=json.dumps(whole))
    with pytest.raises(UserError, match=re.escape(said)):
        read_lora(model("wan"), file)


def test_kernels_of_a_linear_layers_lokr(tmp_path):
    """Matrices of linear layers that are written with kernels of 1 are the same ones."""
    tensors = of_layer("lokr", w1=(4, 4), w2=(D // 4, D // 4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = {key: torch.randn_like(tensor) for key, tensor in tensors.items()}
    wide = {key: tensor[..., None, None] if "w2" in key else tensor for key, tensor in tensors.items()}
    raw = model("wan")
    plain, same = (
        read_lora(raw, write(tmp_path / f"{i}.safetensors", each))["blocks.0.attn1.to_q"].dense(torch.zeros(D, D))
        for i, each in enumerate((tensors, wide))
    )
    assert plain.any() and torch.equal(plain, same)


def test_names_of_our_own_transformer(tmp_path):
    dit = VideoDiT(latent_channels=4, width=48, depth=2, heads=2, text_width=24)
    file = write(tmp_path / "x.safetensors", lora_of("transformer.blocks.1.mlp.fc2", 128, 48))
    assert list(read_lora(dit, file)) == ["blocks.1.mlp.fc2"]
    with pytest.raises(UserError, match="find no place in this VideoDiT"):
        read_lora(dit, write(tmp_path / "y.safetensors", lora_of("blocks.0.attn1.to_q")))
