"""`python -m latentvid.adapters`: folders with adapters in their weights, which load as any other; files shown."""

import json
import os
import runpy
import sys

import pytest
import torch
from diffusers import WanPipeline
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file

from latentvid.models.adapters.lora import save_lora
from latentvid.models.open.folder import load_backbone, read_published
from latentvid.models.saved import load_component
from latentvid.models.transformer import VideoDiT
from latentvid.pipelines.arguments import Lora
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.references import Role, header_of

SAMPLING = Sampling(steps=2, progress=False)


@pytest.fixture
def command(monkeypatch, capsys):
    """The program with arguments: (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adapters", *map(str, arguments)])
        monkeypatch.delitem(sys.modules, "latentvid.adapters", raising=False)
        capsys.readouterr()
        status = 0
        try:
            runpy.run_module("latentvid.adapters", run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


def lora_of(raw, folder, *targets, seed=0, note=None):
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=list(targets)), raw)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in raw.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return save_lora(raw, folder, note=note)


def test_a_pipeline_of_ours(tiny_pipeline, command, tmp_path):
    one, two = (
        lora_of(load_component(VideoDiT, tiny_pipeline / "transformer"), tmp_path / f"{i}", *names, seed=i)
        for i, names in enumerate((("query", "fc2"), ("query", "out")))
    )
    status, said, wrong = command(
        "merge", tiny_pipeline, "--lora", f"{one}:0.5", "--lora", two, "--out", tmp_path / "out"
    )
    assert (status, said) == (0, f"wrote {tmp_path / 'out'}\n"), wrong
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    merged = load_pipeline(tmp_path / "out", "cpu")("a red 7", seed=1, sampling=SAMPLING, output_type="uint8").frames[0]
    loaded, plain = (
        load_pipeline(tiny_pipeline, "cpu", lora=lora)(
            "a red 7", seed=1, sampling=SAMPLING, output_type="uint8"
        ).frames[0]
        for lora in ([Lora(one, 0.5), Lora(two)], ())
    )
    assert (merged.int() - loaded.int()).abs().max() <= 1 < (merged.int() - plain.int()).abs().max()
    assert "kind: LoRA" in command("show", one)[1]
    for words, message in (
        (("merge", tiny_pipeline, "--lora", one, "--out", tmp_path / "out"), "out exists"),
        (("merge", tiny_pipeline, "--out", tmp_path / "new"), "--lora is required"),
        (("merge", tiny_pipeline, "--lora-2", one, "--out", tmp_path / "new"), "this model has one network"),
        (("merge", tmp_path / "none", "--lora", one, "--out", tmp_path / "new"), "there is no model folder"),
        (("merge", tiny_pipeline, "--lora", tmp_path, "--out", tmp_path / "new"), "holds 0 files of tensors"),
        (("show", tmp_path / "none.safetensors"), "is missing"),
        (("sow", one), "argument|choose|must be|invalid"),
    ):
        status, _, wrong = command(*words)
        assert status == 2 and wrong.count("\n") == 1 and any(part in wrong for part in message.split("|")), wrong
    assert not (tmp_path / "new").exists()


def test_two_files_that_know_a_reference_otherwise_are_not_merged(tiny_pipeline, command, tmp_path):
    roles = {"aligned": Role(place="aligned"), "beside": Role(place="beside", max_frames=1)}
    files = []
    for name, role in roles.items():
        raw = load_component(VideoDiT, tiny_pipeline / "transformer")
        files.append(lora_of(raw, tmp_path / name, "query", note=header_of({"pose": role})))
    both = [word for file in files for word in ("--lora", file)]
    status, _, wrong = command("merge", tiny_pipeline, *both, "--out", tmp_path / "out")
    assert status == 2 and "was trained with another reference pose" in wrong and not (tmp_path / "out").exists()
    assert command("merge", tiny_pipeline, *both[:2], "--out", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out/model_index.json").read_text())["references"]["pose"]["place"] == "aligned"
    status, _, wrong = command("merge", tmp_path / "out", *both[2:], "--out", tmp_path / "new")
    assert status == 2 and "was trained with another reference pose" in wrong


def test_a_published_repository_in_the_types_it_has(repository, command, tmp_path):
    folder = repository("wan")
    published = read_published(folder)
    file = lora_of(load_backbone(published).raw, tmp_path / "lora", "to_q", "ffn.net.2")
    out, narrow = tmp_path / "out", tmp_path / "narrow"
    assert command("merge", folder, "--lora", f"{file}:0.5", "--out", out)[0] == 0
    here, there = ({p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in (folder, out))
    assert here == there
    asked = dict(prompt="a red 7", height=32, width=32, num_frames=5, num_inference_steps=2, output_type="latent")
    clips = []
    for source, lora in ((out, None), (folder, file)):
        pipeline = WanPipeline.from_pretrained(source)
        pipeline.set_progress_bar_config(disable=True)
        if lora is not None:
            pipeline.load_lora_weights(lora)
            pipeline.set_adapters(pipeline.get_active_adapters(), 0.5)
        clips.append(pipeline(**asked, generator=torch.Generator().manual_seed(0)).frames)
    torch.testing.assert_close(*clips, rtol=0, atol=1e-5)
    assert command("merge", out, "--lora", file, "--out", narrow, "--dtype", "bf16")[0] == 0
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert {t.dtype for t in load_file(narrow / weights).values()} == {torch.bfloat16}
    again = tmp_path / "again"
    assert command("merge", narrow, "--lora", file, "--out", again)[0] == 0  # as they are stored
    assert {t.dtype for t in load_file(again / weights).values()} == {torch.bfloat16}
    assert all(not os.path.islink(p) for p in again.rglob("*"))


def test_the_second_of_two_transformers(repository, command, tmp_path):
    folder = repository("wan_experts")
    file = lora_of(load_backbone(read_published(folder), "transformer_2").raw, tmp_path / "lora", "to_q")
    assert command("merge", folder, "--lora-2", file, "--out", tmp_path / "out")[0] == 0
    name = "diffusion_pytorch_model.safetensors"
    for part, changed in (("transformer", False), ("transformer_2", True)):
        before, after = (load_file(f / part / name) for f in (folder, tmp_path / "out"))
        assert (not all(torch.equal(before[k], after[k]) for k in before)) == changed
