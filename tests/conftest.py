"""What every test runs under: one thread, fixed seeds, no network; `gpu` tests are skipped without CUDA.

The session's tiny things (data, encoders, cache, pipeline) import the heavy libraries only when a test asks for them.
"""

import os
import random
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported: before anything else is
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from latentvid import precision

MEASURED = precision._speed
# inductor takes what it compiled for one arithmetic for another's (ATEN_CPU_CAPABILITY), and then writes out of bounds
KERNELS = f"torchinductor_{os.getuid()}_{torch.backends.cpu.get_cpu_capability().split()[0].lower()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), KERNELS))


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter) -> None:
    """Whose arithmetic it was: `make test-avx2` takes another than this processor's best."""
    kind = torch.backends.cpu.get_cpu_capability()
    terminalreporter.write_line(f"computed with {kind}; bf16 is {MEASURED('cpu')}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # keywords also hold the names of folders
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def fp32_is_faster():
    """What is left to `auto` computes in fp32: no test depends on the kind of its processor. Gives the measurement."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "_speed", lambda device: precision.Speed(0.5, 0.5))
        yield MEASURED


@pytest.fixture
def cuda_without_a_driver(monkeypatch) -> None:
    """Autocast on CUDA and attention's choice of a kernel go on without a driver, for tensors without storage."""
    import torch.nn.attention.varlen as varlen

    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    if hasattr(varlen, "_select_backend"):
        monkeypatch.setattr(varlen, "_select_backend", lambda *_, **__: varlen._FLASH_ATTENTION_BACKEND)


@pytest.fixture
def run(capsys, monkeypatch) -> Callable:
    """`run("inference/t2v.py", ...)`: the script as the main program of this process; (status, stdout, stderr)."""

    def run(script: str, *arguments: object) -> tuple[int, str, str]:
        path = str(Path(__file__).parents[1] / script)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory) -> Path:
    """Folder of the demo's clips and images, 24 of them, with train.jsonl."""
    from latentvid.demo.digits import write_dataset

    root = tmp_path_factory.mktemp("digits")
    write_dataset(root, train=24, val=2)
    return root


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory) -> Path:
    """A transformers folder: T5 encoder of width 32, untrained, with a tokenizer that takes 24 tokens."""
    from latentvid.demo.digits import prompts
    from latentvid.demo.text_encoder import build_encoder, build_tokenizer

    folder = tmp_path_factory.mktemp("t5")
    tokenizer = build_tokenizer([text for _, text in prompts(100, heldout=False, seed=0)], vocab_size=400)
    tokenizer.model_max_length = 24
    build_encoder(len(tokenizer), seed=0, width=32, layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory) -> Path:
    """A diffusers folder: autoencoder of stride 4x4x4 with 4 latent channels, untrained."""
    from latentvid.models.autoencoder import CausalVideoAutoencoder

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    vae = CausalVideoAutoencoder(
        latent_channels=4, widths=(8, 16, 16), latents_mean=(0.1, 0.0, -0.1, 0.2), latents_std=(1.0, 0.8, 1.2, 0.9)
    )
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_latents(tmp_path_factory, digits_data, tiny_vae, tiny_t5) -> Path:
    """The cache of the tiny parts over the digits."""
    from latentvid.training.stages.dit.encode import EncodeConfig, encode_manifest

    folder = tmp_path_factory.mktemp("cache") / "latents"
    sizes = {"max_frames": 17, "max_area": None, "patch": 2, "batch": 4, "mixed_precision": "no"}
    encode_manifest(EncodeConfig(digits_data / "train.jsonl", tiny_vae, str(tiny_t5), folder, **sizes))
    return folder


@pytest.fixture(scope="session")
def dit_config(tiny_vae, tiny_t5, tiny_latents) -> Callable:
    """`dit_config(run_dir, "section.key=value", ...)`: a tiny DitConfig that trains from the tiny cache."""
    from latentvid.config.parsing import load_config
    from latentvid.config.schema import DitConfig

    base = {
        "vae": tiny_vae,
        "text_encoder": tiny_t5,
        "data.latents": tiny_latents,
        "data.workers": 0,
        "data.tokens_per_pack": 256,
        "data.packs_per_step": 2,
        "model.patch": 2,
        "model.width": 32,
        "model.depth": 2,
        "model.heads": 2,
        "model.mlp_ratio": 2.0,
        "model.rope_theta": 100.0,
        "optim.lr": 3e-3,
        "optim.warmup": 2,
        "train.mixed_precision": "no",
        "train.ema": 0.9,
        "train.steps": 6,
        "checkpoint.every": 3,
        "checkpoint.keep_last": 20,
        "log.trackers": "[]",
        "samples.height": 32,
        "samples.width": 32,
        "samples.frames": 5,
        "samples.steps": 2,
        "inference.steps": 2,
    }

    def make(run_dir: Path, *overrides: str) -> DitConfig:
        return load_config(DitConfig, None, [f"run.dir={run_dir}", *(f"{k}={v}" for k, v in base.items()), *overrides])

    return make


@pytest.fixture(scope="session")
def vae_config(digits_data) -> Callable:
    """`vae_config(run_dir, "section.key=value", ...)`: a tiny VaeConfig that trains on the digits."""
    from latentvid.config.parsing import load_config
    from latentvid.config.schema import VaeConfig

    base = {
        "data.manifest": digits_data / "train.jsonl",
        "data.max_frames": 9,
        "data.workers": 0,
        "data.tokens_per_pack": 400,
        "data.packs_per_step": 2,
        "model": "{latent_channels: 4, widths: [8, 8, 8], kernels: factorised}",
        "optim.name": "muon",
        "optim.warmup": 2,
        "train.mixed_precision": "no",
        "train.ema": 0.9,
        "train.steps": 6,
        "checkpoint.every": 3,
        "log.trackers": "[]",
        "statistics_samples": 8,
    }

    def make(run_dir: Path, *overrides: str) -> VaeConfig:
        return load_config(VaeConfig, None, [f"run.dir={run_dir}", *(f"{k}={v}" for k, v in base.items()), *overrides])

    return make


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps the first Accelerator's settings for the whole process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory, tiny_vae, tiny_t5) -> Path:
    """A saved pipeline of 5 frames of 32x32 whose transformer has random weights, so that every input matters."""
    from transformers import AutoTokenizer, T5EncoderModel

    from latentvid.diffusion.scheduler import LatentVideoScheduler
    from latentvid.models.autoencoder import CausalVideoAutoencoder
    from latentvid.models.transformer import VideoDiT
    from latentvid.pipelines.latent_video import LatentVideoPipeline

    torch.manual_seed(0)
    transformer = VideoDiT(latent_channels=4, width=32, depth=2, heads=2, text_width=32, rope_theta=100.0)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    parts = {
        "vae": CausalVideoAutoencoder.from_pretrained(tiny_vae),
        "transformer": transformer,
        "scheduler": LatentVideoScheduler(),
        "text_encoder": T5EncoderModel.from_pretrained(tiny_t5),
        "tokenizer": AutoTokenizer.from_pretrained(tiny_t5),
    }
    folder = tmp_path_factory.mktemp("pipeline")
    LatentVideoPipeline(**parts, frames=5, height=32, width=32, steps=3).save_pretrained(folder)
    return folder


def trained_as(pipeline: Path, folder: Path, **words) -> Path:
    """A copy of a saved pipeline that says something else of its training."""
    import json
    import shutil

    shutil.copytree(pipeline, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | words))
    return folder


@pytest.fixture(scope="session")
def given_pipeline(tmp_path_factory, tiny_pipeline) -> Path:
    """`tiny_pipeline` as one that was trained with given frames."""
    given = ["plain", "first", "prefix", "ends", "random"]
    return trained_as(tiny_pipeline, tmp_path_factory.mktemp("given") / "pipeline", given=given)


@pytest.fixture(scope="session")
def image_pipeline(tmp_path_factory, tiny_pipeline) -> Path:
    """`tiny_pipeline` as one that was trained on pictures."""
    return trained_as(tiny_pipeline, tmp_path_factory.mktemp("images") / "pipeline", frames=1)


@pytest.fixture(scope="session")
def repository(tmp_path_factory) -> Callable:
    """`repository("wan")`: the folder of a small random published model as diffusers writes it, by open_repository."""
    from open_repository import write_repository

    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_repository(tmp_path_factory.mktemp("published") / kind, kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def published_config(digits_data) -> Callable:
    """`published_config(run_dir, folder, "section.key=value", ...)`: a DitConfig that trains a published model on the
    digits' clips."""
    from latentvid.config.parsing import load_config
    from latentvid.config.schema import DitConfig

    base = {
        "data.manifest": digits_data / "train.jsonl",
        "data.max_frames": 9,
        "data.workers": 0,
        "data.tokens_per_pack": 64,
        "data.packs_per_step": 2,
        "optim.lr": 3e-3,
        "optim.warmup": 2,
        "train.mixed_precision": "no",
        "train.ema": 0.9,
        "train.steps": 4,
        "checkpoint.every": 2,
        "log.trackers": "[]",
    }

    def make(run_dir: Path, folder: Path, *overrides: str) -> DitConfig:
        lines = [f"run.dir={run_dir}", f"model.from={folder}", *(f"{k}={v}" for k, v in base.items())]
        return load_config(DitConfig, None, [*lines, *overrides])

    return make
