"""LoRA, DoRA, LoHa and LoKr: as peft trains them, as files have them, loaded, several at once, merged."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lora_models import FAMILIES, matrices, model, rand
from peft import inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn

from latentvid.config.sections import Adapter
from latentvid.errors import UserError
from latentvid.models.adapters.changes import Change, Hadamard, Kronecker
from latentvid.models.adapters.facts import describe
from latentvid.models.adapters.layer import Adapted
from latentvid.models.adapters.lora import adapters_in, changes_in, load_lora, merge, save_lora, set_scale, unload
from latentvid.models.adapters.lora_files import read_lora
from latentvid.models.adapters.writing import tensors_of
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed
from latentvid.training.stages.dit.beside import add_adapter, of_peft

KINDS = ("lora", "dora", "loha", "lokr")
TARGETS = {
    "dit": ("query", "key_value", "mlp.fc2"),
    "wan": FAMILIES["wan"].targets,
    "hunyuan": FAMILIES["hunyuan"].targets,
}
ALPHA, RANK = 5.0, 3


def network(name):
    if name != "dit":
        return model(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dit = VideoDiT(latent_channels=4, width=48, depth=2, heads=2, text_width=24)
        for p in dit.parameters():
            nn.init.normal_(p, std=0.2)
    return dit.eval()


def run(name, raw):
    with torch.no_grad():
        if name != "dit":
            return FAMILIES[name].run(raw)
        layout = Packed.of([(2, 2, 3), (1, 2, 2)])
        return raw(rand(16, 16), torch.tensor([0.3, 0.7, 0.5]), rand(7, 24), layout, Packed.of_lengths([3, 4]))


def trained(name, kind, rank=RANK, seed=3):
    """As training leaves it: peft's layers, with matrices that are not zero, and magnitudes that are others."""
    raw = network(name)
    names = [n for n, m in raw.named_modules() if isinstance(m, nn.Linear) and n.endswith(TARGETS[name])]
    inject_adapter_in_model(of_peft(Adapter(kind=kind, rank=rank, alpha=ALPHA), names), raw)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in raw.named_parameters():
            if "magnitude" in n:
                p.mul_(1 + 0.3 * torch.rand(p.shape, generator=generator))
            elif p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return raw.eval()


def close(got, want, tolerance=1e-5):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize(
    "name, kind, rank",
    [*(("dit", kind, RANK) for kind in KINDS), ("dit", "lokr", 4), *(("wan", kind, RANK) for kind in KINDS)],
)
def test_what_peft_trains_is_loaded_merged_and_left_out(name, kind, rank, tmp_path):
    raw, plain = trained(name, kind, rank), run(name, network(name))
    want = run(name, raw)
    assert (want - plain).abs().max() > 0.1
    file = save_lora(raw, tmp_path)
    ours = network(name)
    adapter = load_lora(ours, file)
    assert adapters_in(ours) == [adapter] and not any(
        p.requires_grad for n, p in ours.named_parameters() if ".adapters." in n
    )
    close(run(name, ours), want)
    set_scale(ours, adapter, 0.0)
    assert torch.equal(run(name, ours), plain)
    assert torch.equal(run(name, with_scale(name, file, 0.0)), plain)
    for loaded in (raw, with_scale(name, file, 1.0)):
        merge(loaded)
        close(run(name, loaded), want)
        assert loaded.state_dict().keys() == network(name).state_dict().keys()
    unload(ours)
    assert torch.equal(run(name, ours), plain)
    assert {c.kind for c in changes_in(trained(name, kind, rank)).values()} == {kind}
    assert (describe(file).split("kind: ")[1].split("\n")[0]).lower() == kind


def with_scale(name, file, scale):
    raw = network(name)
    load_lora(raw, file, scale)
    return raw


def test_several_kinds_come_to_the_same_in_any_order_and_merged(tmp_path):
    files = {kind: save_lora(trained("wan", kind, seed=i), tmp_path / kind) for i, kind in enumerate((*KINDS, "dora"))}
    second = save_lora(trained("wan", "dora", seed=9), tmp_path / "second")
    scales = {files["lora"]: 0.5, files["dora"]: 0.7, files["loha"]: -0.3, files["lokr"]: 0.2, second: 1.2}
    want = network("wan")
    weights = {n: p.detach().clone() for n, p in want.named_parameters()}
    with torch.no_grad():
        for file, scale in scales.items():
            for name, change in read_lora(want, file).items():
                want.get_submodule(name).weight += scale * reference(change, weights[f"{name}.weight"])
    wanted = run("wan", want)
    for order in (scales, dict(reversed(scales.items()))):
        raw = network("wan")
        for file, scale in order.items():
            load_lora(raw, file, scale)
        close(run("wan", raw), wanted)
        merge(raw)
        close(run("wan", raw), wanted)


def reference(change, weight):
    """The change of a weight by the papers' formulas, row by row and block by block."""
    if isinstance(change, Kronecker):
        c, d = (pair[0] if len(pair) == 1 else pair[0] @ pair[1] for pair in (change.w1, change.w2))
        product = torch.cat([torch.cat([x * d for x in row], dim=1) for row in c])
    elif isinstance(change, Hadamard):
        product = (change.w1_a @ change.w1_b) * (change.w2_a @ change.w2_b)
    else:
        product = change.b @ change.a.flatten(1)
    product = product.reshape(weight.shape)
    if change.magnitude is None:
        return product
    rows = [m * row / row.norm() for m, row in zip(change.magnitude, weight + product, strict=True)]
    return torch.stack(rows) - weight


def test_diffusers_reads_a_dora_that_is_written(tmp_path):
    save_lora(trained("wan", "dora"), tmp_path)
    theirs = network("wan")
    FAMILIES["wan"].pipeline(theirs).load_lora_weights(tmp_path)
    close(run("wan", theirs), run("wan", trained("wan", "dora")))
    with pytest.raises(UserError, match="diffusers has no form for the kind loha"):
        save_lora(trained("wan", "loha"), tmp_path, naming="diffusers")


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_the_authors_names_come_back(name, kind, tmp_path):
    """Also where a layer of theirs is several here; LoKr, which cannot be joined, is apart there."""
    raw = trained(name, kind)
    path = save_lora(raw, tmp_path, naming="comfyui")
    keys = load_file(path).keys()
    assert all(key.startswith("diffusion_model.") for key in keys)
    joint = any("img_attn_qkv" in key for key in keys)
    assert joint == (name == "hunyuan" and kind != "lokr")
    again = network(name)
    load_lora(again, path)
    close(run(name, again), run(name, raw))


@pytest.mark.parametrize("kind, rank", [*((kind, RANK) for kind in KINDS), ("lokr", 4)])
def test_training_goes_on_from_a_file_of_any_layout(kind, rank, tmp_path):
    """The model is the same, whatever rank and alpha the file was trained with; its matrices are what is trained."""
    file = save_lora(trained("hunyuan", kind, rank), tmp_path, naming="comfyui")
    raw, settings = network("hunyuan"), Adapter(kind=kind, init=file, dropout=0.1)
    add_adapter(raw, SimpleNamespace(adapter=settings, run=SimpleNamespace(seed=0)), ())
    close(run("hunyuan", raw.eval()), run("hunyuan", trained("hunyuan", kind, rank)))
    asked = {name for name, p in raw.named_parameters() if p.requires_grad}
    assert asked == {name for name, p in trained("hunyuan", kind, rank).named_parameters() if p.requires_grad}
    other = Adapter(kind="dora" if kind == "lora" else "lora", init=file)
    with pytest.raises(UserError, match=f"by {kind}, and adapter.kind is {other.kind}"):
        add_adapter(network("hunyuan"), SimpleNamespace(adapter=other, run=SimpleNamespace(seed=0)), ())


def joint_layer(into=32, parts=3, width=32):
    """Another's name for three layers of HunyuanVideo, and the places of its rows here."""
    return "diffusion_model.double_blocks.0.img_attn_qkv", [
        (f"transformer_blocks.0.attn.to_{x}", slice(i * width, (i + 1) * width)) for i, x in enumerate("qkv")
    ]


@pytest.mark.parametrize("rows", [4, 6])
def test_a_lokr_of_a_joint_layer_is_taken_apart(rows, tmp_path):
    """Of 96 rows, by blocks of 24 (which 32 cannot be cut into) and of 16; alpha over the rank of the second matrix."""
    raw, (written, places) = network("hunyuan"), joint_layer()
    c = rand(rows, 4) * 0.3
    d = (rand(96 // rows, 2), rand(2, 8))
    tensors = {"lokr_w1": c, "lokr_w2_a": d[0], "lokr_w2_b": d[1], "alpha": torch.tensor(3.0)}
    save_file({f"{written}.{key}": x.contiguous() for key, x in tensors.items()}, tmp_path / "x.safetensors")
    found, whole = read_lora(raw, tmp_path), torch.kron(c, d[0] @ d[1]) * 3.0 / 2
    for name, part in places:
        close(found[name].dense(raw.get_submodule(name).weight), whole[part])
        assert isinstance(found[name], Kronecker if rows == 6 else Change)


def test_a_whole_lokr_has_no_alpha_and_a_dora_scale_goes_with_any_kind(tmp_path):
    raw, name = network("wan"), "blocks.0.attn1.to_q"
    c, d = rand(4, 4), rand(8, 8) * 0.1
    save_file(
        {f"{name}.lokr_w1": c, f"{name}.lokr_w2": d, f"{name}.alpha": torch.tensor(99.0)}, tmp_path / "x.safetensors"
    )
    weight = raw.get_submodule(name).weight.detach()
    close(read_lora(raw, tmp_path)[name].dense(weight), torch.kron(c, d))
    magnitude = torch.linspace(0.5, 2, 32)
    hada = {k: rand(*s) for k, s in zip(("w1_a", "w1_b", "w2_a", "w2_b"), ((32, 2), (2, 32)) * 2, strict=True)}
    tensors = {f"{name}.hada_{k}": x for k, x in hada.items()} | {f"{name}.dora_scale": magnitude[:, None].clone()}
    save_file({**tensors, f"{name}.alpha": torch.tensor(0.5)}, tmp_path / "x.safetensors")
    new = weight + (hada["w1_a"] @ hada["w1_b"]) * (hada["w2_a"] @ hada["w2_b"]) / 4
    want = magnitude[:, None] * new / new.norm(dim=1, keepdim=True)
    found = read_lora(raw, tmp_path)[name]
    close(weight + found.dense(weight), want)
    load_lora(raw, tmp_path)
    x = rand(5, 32)
    close(raw.get_submodule(name)(x).detach(), (x @ want.T + raw.get_submodule(name).bias).detach())


def test_kernels_of_convolutions(tmp_path):
    """LoRA with a kernel apart, LoHa and LoKr of a convolution, also with Tucker's kernel (LyCORIS)."""
    raw, name = network("wan"), "patch_embedding"
    o, i, *k = raw.patch_embedding.weight.shape
    mid, down, up = rand(3, 2, *k), rand(2, i, 1, 1, 1), rand(o, 3, 1, 1, 1) * 0.1
    a, b, c, d = rand(2, o) * 0.3, rand(2, i), rand(2, o), rand(2, i)
    t1, t2 = rand(2, 2, *k), rand(2, 2, *k) * 0.3
    one = torch.einsum("rs...,ro,si->oi...", t1, a, b)
    w1, w2 = rand(4, 2), rand(o // 4, i // 2, *k) * 0.1
    kron = torch.stack([torch.cat([x * w2 for x in row], dim=1) for row in w1]).flatten(0, 1)
    cases = [
        ({"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid},
         torch.einsum("or,rs...,si->oi...", up.flatten(1), mid, down.flatten(1))),
        ({"hada_w1_a": a, "hada_w1_b": b, "hada_t1": t1, "hada_w2_a": c, "hada_w2_b": d, "hada_t2": t2},
         one * torch.einsum("rs...,ro,si->oi...", t2, c, d)),
        ({"lokr_w1": w1, "lokr_w2": w2}, kron),
    ]  # fmt: skip
    for tensors, want in cases:
        save_file({f"{name}.{key}": x.contiguous() for key, x in tensors.items()}, tmp_path / "x.safetensors")
        found = read_lora(raw, tmp_path)[name]
        close(found.dense(raw.patch_embedding.weight), want)
        loaded, changed = copy.deepcopy(raw), copy.deepcopy(raw)
        load_lora(loaded, tmp_path, 0.5)
        with torch.no_grad():
            changed.patch_embedding.weight += 0.5 * want
        close(run("wan", loaded), run("wan", changed))
    with pytest.raises(UserError, match="to save: it has x"):
        changes_in(loaded)


def test_what_goes_together_is_one_adapter(tmp_path):
    raw, name = network("wan"), "blocks.0.attn1.to_q"
    a, b = matrices(32, 32, 2, 0)
    hada = {f"{name}.hada_{k}": rand(32, 32) for k in ("w1_a", "w1_b", "w2_a", "w2_b")}
    for tensors, said in (
        ({**hada, f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, "alone"),
        ({**hada, "blocks.0.self_attn.q.lora_A.weight": a, "blocks.0.self_attn.q.lora_B.weight": b}, "by two names"),
        ({**hada, f"{name}.diff": rand(32, 32)}, "by loha and by diff"),
        ({**hada, f"{name}.hada_t1": rand(2, 2)}, "alone"),
    ):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=said):
            load_lora(raw, tmp_path)
    assert not any(isinstance(m, Adapted) for m in raw.modules())


def test_what_a_file_holds(tmp_path):
    written = describe(save_lora(trained("dit", "lora"), tmp_path))
    numbers = sum(x.numel() for x in load_file(tmp_path / "pytorch_lora_weights.safetensors").values())
    for line in ("kind: LoRA", "rank: 3", "alpha: 3", f"parameters: {numbers:,}, float32", "names: diffusers"):
        assert f"  {line}" in written
    assert "blocks.N.attention.query" in written and "layers: 10" in written
    save_file({"a.weight": torch.ones(2)}, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="holds no LoRA: give the file"):
        describe(tmp_path / "y.safetensors")
    save_file({"x.oft_blocks": torch.ones(2)}, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="of the kind OFT"):
        describe(tmp_path / "y.safetensors")


def test_a_loaded_dora_is_saved_as_it_came_or_not_at_all(tmp_path):
    raw = network("dit")
    name = load_lora(raw, save_lora(trained("dit", "dora"), tmp_path / "one"))
    again = network("dit")
    load_lora(again, save_lora(raw, tmp_path / "two", name))
    assert torch.equal(run("dit", again), run("dit", raw))
    set_scale(raw, name, 0.5)
    with pytest.raises(UserError, match=r"the scale 0\.5, which no file can say"):
        save_lora(raw, tmp_path / "three", name)
    with pytest.raises(UserError, match="no loaded LoRA 'other'"):
        set_scale(raw, "other", 1.0)


def test_files_beside_peft_layers_and_magnitudes_of_some_layers(tmp_path):
    """A DoRA over peft's layers is refused; layers without magnitudes get those they have, as peft has all or none."""
    raw = trained("wan", "lora")
    save_lora(trained("wan", "dora"), tmp_path)
    with pytest.raises(UserError, match="merge or unload"):
        load_lora(raw, tmp_path)
    changes = changes_in(trained("wan", "dora"))
    first = next(iter(changes))
    mixed = changes | {first: Change(changes[first].a, changes[first].b)}
    tensors, _ = tensors_of(network("wan"), mixed, "diffusers")
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    found, weight = read_lora(network("wan"), tmp_path), network("wan").get_submodule(first).weight.detach()
    close(found[first].dense(weight), mixed[first].dense(weight))
