"""Two processes do what one does: real `accelerate launch` of the real scripts, on CPUs."""

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from comparing import assert_measured_alike, difference, losses
from launching import ROOT, launch
from safetensors.torch import load_file

from latentvid.config.parsing import save_config
from latentvid.data.cache.latents import LatentCache
from latentvid.demo.digits import write_dataset
from latentvid.training.stages.dit.encode import EncodeConfig, encode_manifest
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train


@pytest.mark.distributed
def test_two_processes_equal_one(dit_config, tiny_vae, tiny_t5, tiny_latents, tmp_path):
    """A cache, a training with accumulation, and its continuation on another number of processes."""
    options = (
        "data.packs_per_step=4",
        "optim.schedule=constant",
        "checkpoint.every=2",
        "optim.lr=1e-3",
        "optim.clip=1e-6",  # gradients as small as Adam's eps, so that the length of its steps tells of clipping
        "log.draws=true",
        "validation.every=2",
        f"validation.latents={tiny_latents}",
        "validation.samples=5",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    save_config(dit_config(two, *options, "train.steps=4"), tmp_path / "config.yaml")
    write_dataset(tmp_path / "data", train=30, val=2)
    manifest = tmp_path / "data" / "train.jsonl"
    parts = ["--manifest", manifest, "--vae", tiny_vae, "--text-encoder", tiny_t5, "--out", tmp_path / "latents-two"]
    launch(
        "ddp",
        2,
        # windows of one frame: more than one shard, so that both processes have one
        [ROOT / "vae/encode_latents.py", *parts, "--max-frames", "1", "--mixed-precision", "no"],
        [ROOT / "train/train_dit.py", tmp_path / "config.yaml"],
    )

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    config = EncodeConfig(manifest, tiny_vae, str(tiny_t5), tmp_path / "latents-one", 1, None, 2, 16, "no")
    encode_manifest(config)
    caches = [LatentCache(tmp_path / f"latents-{n}") for n in ("one", "two")]
    assert caches[0].key == caches[1].key and caches[0].grids == caches[1].grids and len(caches[0]) > 256
    files = [sorted(p.name for p in cache.folder.glob("*.safetensors")) for cache in caches]
    assert files[0] == files[1] and len(files[0]) == 3  # two of latents, one of texts
    for name in files[0]:
        first, second = (load_file(cache.folder / name) for cache in caches)
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)

    train(dit_config(one, *options, "train.steps=4"), DitTask)
    difference(two, one).check()
    assert len(losses(one)) == 4
    assert sorted(p.name for p in (two / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    for run in (one, two):  # what two processes began, one goes on with
        train(dit_config(run, *options, "train.steps=6"), DitTask)
    difference(two, one).check()
    assert_measured_alike(two, one)
    assert len(losses(one)) == 6
