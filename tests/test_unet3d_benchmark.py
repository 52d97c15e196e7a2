"""benchmarks/unet3d.py: networks of equal size, distances that see what they are of, and the whole of it, tiny."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet3DConditionModel

from latentvid.demo.digits import COLOURS, SIZES, Label, render, write_dataset
from latentvid.demo.judge import Judge

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import unet3d

    return unet3d


@pytest.mark.parametrize(("transformer", "channels", "text"), [(4_349_856, 8, 128), (300_000, 4, 32)])
def test_the_u_net_has_as_many_parameters(benchmark, transformer, channels, text):
    model = benchmark.unet_like(transformer, channels, text)
    first, second = model["block_out_channels"]
    assert second >= first and model["kind"] == "unet3d"
    raw = UNet3DConditionModel(
        in_channels=channels, out_channels=channels, cross_attention_dim=text, block_out_channels=(first, second),
        layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    assert sum(p.numel() for p in raw.parameters()) == pytest.approx(transformer, rel=0.05)


def test_distances_see_what_they_are_of(benchmark):
    """Clips of other digits are far by looks, and clips that move elsewhere by paths."""
    of = benchmark.features(Judge.load(), None)

    def clips(digit: int, direction: str, seed: int) -> list[torch.Tensor]:
        labels = [Label(digit, colour, "moves", direction) for colour in COLOURS for _ in range(3)]
        rngs = (np.random.default_rng((seed, i)) for i in range(len(labels)))
        return [render(label, 9, SIZES[0], rng, heldout=True) for label, rng in zip(labels, rngs, strict=True)]

    real = clips(1, "left", 0)
    alike, other_digit, other_way = (
        benchmark.distances(found, real, of)
        for found in (clips(1, "left", 1), clips(8, "left", 2), clips(1, "right", 3))
    )
    assert all(value < 1e-3 for value in benchmark.distances(real, real, of).values())
    assert other_digit["look"] > 3 * alike["look"] and other_way["path"] > 3 * alike["path"]


@pytest.mark.slow
def test_the_whole_of_it(tiny_vae, tiny_t5, tiny_latents, tmp_path):
    """Two steps of each; all figures are there, and what is there is not made again."""
    demo = tmp_path / "demo"
    (demo / "pipeline").mkdir(parents=True)
    write_dataset(demo / "data", train=1, val=12)
    for name, folder in {"t5": tiny_t5, "latents": tiny_latents, "pipeline/vae": tiny_vae}.items():
        (demo / name).symlink_to(folder)
    out = tmp_path / "out"
    words = [
        "--demo",
        demo,
        "--out",
        out,
        "--seeds",
        0,
        "--steps",
        2,
        "--pilot",
        3,
        "--trial",
        1,
        "--rates",
        1e-3,
        2e-3,
    ]
    words += ["--clips", 4, "--heldout", 2, "--", "--data.packs_per_step=1"]
    words += ["--inference.steps=2", "--validation.bins=2", "--validation.samples=2"]
    command = [sys.executable, str(ROOT / "benchmarks/unet3d.py"), *map(str, words)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    found = json.loads((out / "unet3d.json").read_text())
    sizes = [way["parameters"] for way in found["networks"].values()]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    for name, way in found["seeds"]["0"].items():
        assert way["steps"] >= 2 and way["loss"] > 0 and {"look", "path"} == way["distance"].keys(), name
        assert (way["seen"]["count"], way["new pairs"]["count"]) == (4, 2) and way["lr"] in (1e-3, 2e-3)
    before = (out / "transformer_seed_0/metrics.jsonl").stat().st_mtime_ns
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (out / "transformer_seed_0/metrics.jsonl").stat().st_mtime_ns == before
