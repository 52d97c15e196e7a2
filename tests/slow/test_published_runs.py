"""Published models in real launches: every strategy, kills, clips and caches, and what diffusers makes of exports."""

import random
import time
from pathlib import Path

import pytest
import torch
from comparing import losses
from diffusers import WanPipeline
from launching import ROOT, family, finish, kill, launch, start, wait_for
from safetensors.torch import load_file

from latentvid.config.parsing import save_config
from latentvid.training.checkpoint.checkpoint import CheckpointStore
from latentvid.training.stages.dit.task import DitTask

TRAIN, ENCODE = ROOT / "train/train_dit.py", ROOT / "vae/encode_latents.py"
LORA = ("adapter.kind=lora", "adapter.rank=4", "adapter.dropout=0.1", "optim.schedule=constant")
LORA_FILE = "lora/pytorch_lora_weights.safetensors"


@pytest.fixture
def written(published_config, repository, tmp_path):
    """`written(run, "section.key=value", ...)`: the file of a configuration that trains the small Wan."""

    def write(run: Path, *overrides: str) -> Path:
        path = tmp_path / f"{run.name}.yaml"
        save_config(DitTask.settled(published_config(run, repository("wan"), *overrides)), path)
        return path

    return write


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def same(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def near(one: Path, other: Path) -> float:
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def test_a_lora_killed_five_times_is_one_never_killed(written, tmp_path):
    whole, run, chance = tmp_path / "whole", tmp_path / "run", random.Random(0)
    options = (*LORA, "train.steps=40", "checkpoint.every=20")
    launch("single", 1, [TRAIN, written(whole, *options)], timeout=900)
    config = written(run, *options)
    for number in range(5):
        before = lines(run)
        process = start("single", 1, [TRAIN, config, f"--checkpoint.every={1 + number % 2}"], log=tmp_path / "log")
        wait_for(lambda p=process, n=before: lines(run) > n or p.poll() is not None, 300, "a step")
        time.sleep(chance.uniform(0.0, 1.0))
        kill(family(process.pid))
        finish(process, 30)
        assert losses(run) == losses(whole)[: lines(run)]
    made = CheckpointStore(run / "checkpoints").steps()
    assert made and made[-1] < 40, f"checkpoints {made}: the kills came too late or too early to prove anything"
    launch("single", 1, [TRAIN, config], timeout=900)
    assert losses(run) == losses(whole) and same(run / LORA_FILE, whole / LORA_FILE)


@pytest.mark.parametrize("recipe", ["ddp", "fsdp2", "zero2", "zero3"])
def test_strategies_train_one_lora_and_go_on_with_each_others(recipe, written, tmp_path):
    """Two steps under it and two by one process, against four by one process; and all weights under it."""
    options = (*LORA[:2], "optim.schedule=constant", "checkpoint.every=2", "optim.lr=1e-3")
    one, two, all_weights = tmp_path / "one", tmp_path / "two", tmp_path / "all"
    both = [written(two, *options, "train.steps=2"), written(all_weights, "train.steps=2", "optim.lr=1e-3")]
    launch(recipe, 2, *([TRAIN, config] for config in both), timeout=900)
    assert all(".lora_" in n for n in names(two))
    launch("single", 1, [TRAIN, both[0], "--train.steps=4"], [TRAIN, written(one, *options)], timeout=900)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert near(two / LORA_FILE, one / LORA_FILE) < 1e-4
    whole = tmp_path / "whole"
    launch("single", 1, [TRAIN, written(whole, "train.steps=2", "optim.lr=1e-3")], timeout=900)
    assert losses(all_weights) == pytest.approx(losses(whole), rel=1e-5)
    file = "pipeline/transformer/diffusion_pytorch_model.safetensors"
    assert near(all_weights / file, whole / file) < 1e-4


def names(run: Path) -> set[str]:
    files = (run / "checkpoints" / "step-00000002").glob("model*.safetensors")
    return {name for file in files for name in load_file(file)}


def test_clips_and_a_cache_under_two_processes_and_the_export_in_diffusers(written, repository, digits_data, tmp_path):
    run, cached, cache = tmp_path / "run", tmp_path / "cached", tmp_path / "cache"
    whole = "data.max_frames=17"  # clips without a rest, in which windows would be moved
    clips = written(run, whole, "train.steps=3", "samples.every=3", "samples.prompts=[a red 7 moves up]", *SAMPLES)
    latents = written(cached, whole, "data.manifest=null", f"data.latents={cache}", "train.steps=3")
    encode = [ENCODE, "--manifest", digits_data / "train.jsonl", "--model", repository("wan"), "--out", cache]
    encode += ["--max-frames", "17", "--mixed-precision", "no"]
    launch("ddp", 2, encode, [TRAIN, clips], [TRAIN, latents], timeout=900)
    assert losses(cached) == pytest.approx(losses(run), rel=1e-2)  # a cache is of float16
    pipeline = WanPipeline.from_pretrained(run / "pipeline")
    trained = load_file(run / "checkpoints/step-00000003/ema.safetensors")
    found = pipeline.transformer.state_dict()
    assert found.keys() == {name.removeprefix("raw.") for name in trained}
    assert all(torch.equal(value, trained[f"raw.{name}"]) for name, value in found.items())
    asked = dict(prompt="a red 7", height=32, width=32, num_frames=5, num_inference_steps=2, output_type="latent")
    clip = pipeline(**asked, generator=torch.Generator().manual_seed(0)).frames
    fresh = WanPipeline.from_pretrained(repository("wan"))
    fresh.transformer.load_state_dict({n.removeprefix("raw."): v for n, v in trained.items()})
    assert torch.equal(clip, fresh(**asked, generator=torch.Generator().manual_seed(0)).frames)
    assert list((run / "samples").iterdir())


SAMPLES = ("samples.frames=5", "samples.height=32", "samples.width=32", "samples.steps=2")
