"""What the slow tests train: the demo's transformer in fp32 on 300 samples, with an untrained VAE."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launching import ROOT, launch

from latentvid.config.parsing import load_config, save_config
from latentvid.config.schema import DitConfig, VaeConfig
from latentvid.demo.digits import write_dataset
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.training.stages.dit.encode import EncodeConfig, encode_manifest

STEPS = 30


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def demo(tmp_path_factory, tiny_t5) -> Callable[..., Path]:
    """`demo(run_dir, "section.key=value", ...)` writes a configuration file of a 30-step run and returns its path."""
    root = tmp_path_factory.mktemp("demo")
    write_dataset(root / "data", train=300, val=2)
    manifest = root / "data" / "train.jsonl"
    shape = load_config(VaeConfig, ROOT / "configs/vae/demo.yaml", [f"data.manifest={manifest}"]).model
    torch.manual_seed(0)
    CausalVideoAutoencoder(**shape, latents_mean=(0.0,) * 8, latents_std=(1.0,) * 8).save_pretrained(root / "vae")
    sizes = {"max_frames": 17, "max_area": None, "patch": 2, "batch": 16, "mixed_precision": "no"}
    encode_manifest(EncodeConfig(manifest, root / "vae", str(tiny_t5), root / "latents", **sizes))
    base = {
        "run.seed": 0,
        "vae": root / "vae",
        "text_encoder": tiny_t5,
        "data.latents": root / "latents",
        "validation.manifest": root / "data" / "val.jsonl",
        "data.packs_per_step": 4,
        "train.mixed_precision": "no",
        "train.steps": STEPS,
        "optim.schedule": "constant",  # a cosine would depend on the steps, which some tests raise as they go
        "checkpoint.every": 1000,
        "log.trackers": "[]",
        "log.draws": "true",
    }

    def write(run: Path, *overrides: str) -> Path:
        keys = [f"run.dir={run}", *(f"{key}={value}" for key, value in base.items()), *overrides]
        path = run.with_name(f"{run.name}.yaml")
        save_config(load_config(DitConfig, ROOT / "configs/dit/demo.yaml", keys), path)
        return path

    return write


@pytest.fixture(scope="session")
def whole(demo, tmp_path_factory) -> Path:
    """The run in one process that is never stopped: what all others are compared with."""
    run = tmp_path_factory.mktemp("whole") / "run"
    launch("single", 1, [ROOT / "train/train_dit.py", demo(run)])
    return run


@pytest.fixture(scope="session")
def gathering(tmp_path_factory) -> Path:
    """ZeRO-3's settings with all weights sharded: of these small ones it would leave most gathered."""
    settings = json.loads((ROOT / "configs/deepspeed/zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = tmp_path_factory.mktemp("zero3") / "zero3.json"
    path.write_text(json.dumps(settings))
    return path
