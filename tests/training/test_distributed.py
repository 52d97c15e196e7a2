"""Two processes do what one does: real `accelerate launch` of the real scripts, on CPUs."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from latentvid.data.digits import write_dataset
from latentvid.data.latents import LatentCache
from latentvid.training.dit_task import DitTask
from latentvid.training.encode import EncodeConfig, encode_manifest
from latentvid.training.load import save_config
from latentvid.training.metrics import read_metrics
from latentvid.training.trainer import train

ROOT = Path(__file__).parents[2]
LAUNCH = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
DRIVER = """
import runpy, sys
# one launch for several scripts: each as if it were the program
for line in open(sys.argv[1], encoding="utf-8"):
    sys.argv = line.split()
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def launch(folder: Path, *programs: str) -> None:
    """Runs the command lines one after another in two processes that work together."""
    (folder / "driver.py").write_text(DRIVER)
    (folder / "programs").write_text("\n".join(programs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH.split(), "--main_process_port", str(port)]
    done = subprocess.run(
        [*command, str(folder / "driver.py"), str(folder / "programs")],
        cwd=ROOT,
        env={
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.distributed
def test_two_processes_equal_one(dit_config, tiny_vae, tiny_t5, tmp_path):
    """A cache, a training with accumulation, and its continuation on another number of processes."""
    options = ("data.packs_per_step=4", "optim.schedule=constant", "checkpoint.every=2", "optim.lr=1e-3")
    one, two = tmp_path / "one", tmp_path / "two"
    save_config(dit_config(two, *options, "train.steps=4"), tmp_path / "config.yaml")
    write_dataset(tmp_path / "data", train=30, val=2)
    manifest = tmp_path / "data" / "train.jsonl"
    encode = (
        f"--manifest {manifest} --vae {tiny_vae} --text-encoder {tiny_t5} "
        f"--out {tmp_path / 'latents-two'} --max-frames 1 --fp32"
    )  # windows of one frame: more than one shard, so that both processes have one
    launch(
        tmp_path,
        f"{ROOT / 'vae/encode_latents.py'} {encode}",
        f"{ROOT / 'train/train_dit.py'} {tmp_path / 'config.yaml'}",
    )

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    config = EncodeConfig(manifest, tiny_vae, str(tiny_t5), tmp_path / "latents-one", 1, None, 2, 16, False)
    encode_manifest(config)
    caches = [LatentCache(tmp_path / f"latents-{n}") for n in ("one", "two")]
    assert caches[0].key == caches[1].key and caches[0].grids == caches[1].grids and len(caches[0]) > 256
    files = [sorted(p.name for p in cache.folder.glob("*.safetensors")) for cache in caches]
    assert files[0] == files[1] and len(files[0]) == 2
    for name in files[0]:
        first, second = (load_file(cache.folder / name) for cache in caches)
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)

    train(dit_config(one, *options, "train.steps=4"), DitTask)
    assert_close(one, two, steps=4)
    assert sorted(p.name for p in (two / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    for run in (one, two):  # what two processes began, one goes on with
        train(dit_config(run, *options, "train.steps=6"), DitTask)
    assert_close(one, two, steps=6)


def assert_close(one: Path, two: Path, steps: int) -> None:
    """Losses to 1e-5, exported weights to 1e-4, the same samples."""
    pairs = list(zip(read_metrics(one), read_metrics(two), strict=True))
    assert len(pairs) == steps
    for a, b in pairs:
        assert (a["step"], a["tokens"], a["samples"], a["lr"]) == (b["step"], b["tokens"], b["samples"], b["lr"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    weights = [load_file(run / "pipeline/transformer/diffusion_pytorch_model.safetensors") for run in (one, two)]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-4, rtol=0)
