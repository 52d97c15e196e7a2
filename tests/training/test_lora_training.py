"""Adapters and chosen modules: what is trained, what checkpoints hold, a run that is stopped, what is left."""

import json

import pytest
import torch
from diffusers import WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from small_tasks import Stop, stopping

from latentvid.errors import UserError
from latentvid.models.adapters.lora_files import find_file
from latentvid.training.export import export_run
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.table import STAGES
from latentvid.training.trainer import train

LORA = ("adapter.kind=lora", "adapter.rank=4", "adapter.alpha=6")


def names_in(file) -> set[str]:
    with safe_open(file, "pt") as held:
        return set(held.keys())


def tensors_of(run, step, kind):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{kind}.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, repository, published_config):
    """A LoRA of four steps, with dropout."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("tuned") / "run"
    train(published_config(run, repository("wan"), *LORA, "adapter.dropout=0.2"), DitTask)
    return run


def test_checkpoints_hold_the_lora_alone(tuned, published_config, repository, tmp_path):
    names = names_in(tuned / "checkpoints" / "step-00000004" / "model.safetensors")
    assert names and all(".lora_" in name for name in names)
    assert names == names_in(tuned / "checkpoints" / "step-00000004" / "ema.safetensors")
    state = json.loads((tuned / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert len(state["base"]["fingerprint"]) == 64 and state["base"]["where"].endswith("transformer")
    task = DitTask(published_config(tmp_path, repository("wan"), *LORA), torch.device("cpu"))
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
    assert trained == names and all(p.dtype == torch.float32 for p in task.model.parameters() if p.requires_grad)
    kinds = {name.partition("blocks.")[2].split(".", 1)[1].partition(".lora")[0] for name in names}
    assert {"attn1.to_q", "attn2.to_out.0", "ffn.net.2"} <= kinds


def test_a_lora_stopped_and_gone_on_with_is_one_not_stopped(tuned, published_config, repository, tmp_path):
    config = published_config(tmp_path / "run", repository("wan"), *LORA, "adapter.dropout=0.2")
    with pytest.raises(Stop):
        train(config, stopping(after=2 * 3))
    train(config, DitTask)
    for kind in ("model", "ema", "optimizer"):
        assert same(tensors_of(tmp_path / "run", 4, kind), tensors_of(tuned, 4, kind)), kind


def test_diffusers_reads_the_lora_as_it_was_trained(tuned, published_config, repository, tmp_path):
    task = DitTask(published_config(tmp_path, repository("wan"), *LORA), torch.device("cpu"), data=False)
    model = task.model.eval()
    with torch.no_grad():
        average = tensors_of(tuned, 4, "ema")
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(average[name])
    asked = dict(prompt="a red 7", height=32, width=32, num_frames=5, num_inference_steps=2, output_type="latent")
    pipeline = WanPipeline.from_pretrained(repository("wan"))
    pipeline.set_progress_bar_config(disable=True)
    plain = pipeline(**asked, generator=torch.Generator().manual_seed(0)).frames
    pipeline.load_lora_weights(tuned / "lora")
    got = pipeline(**asked, generator=torch.Generator().manual_seed(0)).frames
    clean = WanPipeline.from_pretrained(repository("wan"))
    clean.set_progress_bar_config(disable=True)
    from peft import LoraConfig, set_peft_model_state_dict

    places = sorted({n.partition("raw.")[2].partition(".lora_")[0] for n in average})
    clean.transformer.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=places))
    set_peft_model_state_dict(
        clean.transformer, {n.removeprefix("raw.").replace(".default.", "."): v for n, v in average.items()}
    )
    want = clean(**asked, generator=torch.Generator().manual_seed(0)).frames
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert float((want - plain).abs().max()) > 1e-2


def test_another_base_is_refused(tuned, published_config, repository, tmp_path):
    import shutil

    run = shutil.copytree(tuned, tmp_path / "run")
    other = shutil.copytree(repository("wan"), tmp_path / "other")
    shutil.copyfile(
        repository("wan_experts") / "transformer_2" / "diffusion_pytorch_model.safetensors",
        other / "transformer" / "diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(UserError, match=r"of the base .*transformer.*which has other weights"):
        train(published_config(run, other, *LORA, "adapter.dropout=0.2", "train.steps=6"), DitTask)
    moved = shutil.copytree(repository("wan"), tmp_path / "moved")
    train(published_config(run, moved, *LORA, "adapter.dropout=0.2"), DitTask)  # the same weights elsewhere


def test_chosen_modules_are_trained_and_exported_in_the_repository(published_config, repository, tmp_path):
    run, folder = tmp_path / "run", repository("wan")
    train(published_config(run, folder, r"trainable=[attn2\.to_v, ^proj_out]", "train.steps=2"), DitTask)
    names = names_in(run / "checkpoints" / "step-00000002" / "model.safetensors")
    assert {n.rsplit(".", 1)[0] for n in names} == {
        *(f"raw.blocks.{i}.attn2.to_v" for i in range(2)),
        "raw.proj_out",
    }
    before, after = (
        load_file(f / "transformer/diffusion_pytorch_model.safetensors") for f in (folder, run / "pipeline")
    )
    changed = {f"raw.{k}" for k in before if not torch.equal(before[k], after[k])}
    assert changed == names
    again = export_run(run, tmp_path / "again", STAGES, step=2)
    assert again.name == "step-00000002"
    assert same(after, load_file(tmp_path / "again/transformer/diffusion_pytorch_model.safetensors"))


def test_all_weights_are_trained_and_diffusers_loads_the_repository(published_config, repository, tmp_path):
    run, folder = tmp_path / "run", repository("wan")
    train(published_config(run, folder, "train.steps=2"), DitTask)
    average = tensors_of(run, 2, "ema")
    pipeline = WanPipeline.from_pretrained(run / "pipeline")
    found = pipeline.transformer.state_dict()
    assert {f"raw.{k}" for k in found} == average.keys()
    assert all(torch.equal(v, average[f"raw.{k}"]) for k, v in found.items())
    here, there = ({p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in (folder, run / "pipeline"))
    assert here == there


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            ["adapter.kind=lora", "adapter.targets=[to_q, to_z]"],
            r"adapter\.targets: no layer's name ends in 'to_z'.*to_q",
        ),
        (["trainable=[attn3]"], r"trainable: 'attn3' is found in no parameter's name.*blocks\.N\.attn1"),
        (["adapter.kind=lora", "model.dtype=bf16"], r"model\.dtype=bf16 needs passes in bf16"),
    ],
)
def test_names_that_nothing_has_are_refused(keys, message, published_config, repository, tmp_path):
    with pytest.raises(UserError, match=message):
        DitTask(published_config(tmp_path, repository("wan"), *keys), torch.device("cpu"))


def test_weights_of_low_precision_stay_and_the_lora_is_fp32(published_config, repository, tmp_path):
    options = "adapter.kind=lora", "model.dtype=bf16", "train.mixed_precision=bf16"
    task = DitTask(published_config(tmp_path, repository("wan"), *options), torch.device("cpu"))
    kinds = {(p.requires_grad, p.dtype) for name, p in task.model.named_parameters() if "attn" in name and p.ndim == 2}
    assert {(True, torch.float32), (False, torch.bfloat16)} <= kinds


def test_a_lora_on_a_model_of_ours(dit_config, begun_pipeline, tmp_path):
    config = dit_config(
        tmp_path / "run", f"init={begun_pipeline}", "adapter.kind=lora", "train.steps=2", "checkpoint.every=2"
    )
    train(config, DitTask)
    names = names_in(tmp_path / "run/checkpoints/step-00000002/model.safetensors")
    assert names and all(".lora_" in name for name in names) and any(".key_value." in name for name in names)
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    for begun in (tmp_path / "run", tmp_path / "run/checkpoints/step-00000002"):
        with pytest.raises(UserError, match=f"holds an adapter alone.*merge {tmp_path}/run/lora into its model"):
            DitTask(dit_config(tmp_path / "other", f"init={begun}"), torch.device("cpu"))
    with pytest.raises(UserError, match=f"run holds 0 files of tensors: give {tmp_path}/run/lora"):
        find_file(tmp_path / "run")
