"""Conditions in real launches: what is known by channels; clips made worse with noise, as tokens and by channels."""

import json
from pathlib import Path

import pytest
import torch
from comparing import WEIGHTS, apart, assert_measured_alike, losses
from launching import ROOT, launch

from latentvid.config.parsing import save_config
from latentvid.data.video.reading import probe
from latentvid.data.video.writing import write_video

TRAIN = ROOT / "train/train_dit.py"
WORSE = (
    "[{kind: blur, amount: [0.0, 1.0], share: 0.5}, {kind: resize, amount: [2, 3]}, "
    "{kind: h264, amount: [18, 40], share: 0.5}]"
)
CASES = {
    # a mask of each other clip; of the rest it is drawn what is known
    "known": (
        *("model.condition_channels=mask_and_latents", "given.first=1", "given.random=1", "given.inpaint=1"),
        "data.references={hole: {column: mask, place: channels, dropout: 0.2}}",
    ),
    "low": (f"data.references={{low: {{place: aligned, dropout: 0.2, noise: [0.1, 0.6], degrade: {WORSE}}}}}",),
    "seen": (
        *("model.condition_channels=latents", "given.first=1"),
        f"data.references={{low: {{place: channels, dropout: 0.2, noise: [0.1, 0.6], degrade: {WORSE}}}}}",
    ),
    "few": ("data.references={few: {place: aligned, noise: 0.3, degrade: [{kind: frames, amount: 2}]}}",),
}


@pytest.fixture
def manifest(digits_data, tmp_path) -> Path:
    rows = []
    for i, line in enumerate((digits_data / "train.jsonl").read_text().splitlines()):
        row = json.loads(line)
        row["path"] = str(digits_data / row["path"])
        info = probe(row["path"])
        if i % 2:
            mask = torch.zeros(1, info.height, info.width, 3, dtype=torch.uint8)
            mask[:, info.height // 3 :, 8:] = 255
            write_video(tmp_path / f"{i}.png", mask, 8.0)
        rows.append(row | {"mask": str(tmp_path / f"{i}.png") if i % 2 else None})
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def written(dit_config, tiny_pipeline, manifest, tmp_path):
    """`written(run, "section.key=value", ...)`: the file of a configuration that goes on with a lively model."""

    def write(run: Path, *overrides: str) -> Path:
        path = tmp_path / f"{run.name}.yaml"
        keys = (
            *(f"init={tiny_pipeline}", "init_partial=true", f"model.mlp_ratio={8 / 3}", "data.latents=null"),
            *(f"data.manifest={manifest}", "data.max_frames=9", "data.tokens_per_pack=512", "data.packs_per_step=2"),
            *("optim.schedule=constant", "optim.lr=1e-3", "train.steps=2", "checkpoint.every=2"),
            *(f"validation.manifest={manifest}", "validation.every=2", "validation.samples=2", "validation.bins=1"),
        )
        save_config(dit_config(run, *keys, *overrides), path)
        return path

    return write


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("recipe", "options"),
    [("ddp", ()), ("fsdp2", ()), ("zero2", ()), ("zero3", ()), ("ddp", ("train.sequence_parallel=2",))],
    ids=["ddp", "fsdp2", "zero2", "zero3", "sequence"],
)
def test_strategies_train_alike(recipe, options, written, tmp_path):
    """Under two processes and by one: losses, measurements and exported weights."""
    # masks are refused where processes share a pack
    cases = {name: [key for key in CASES[name] if not (options and "column: mask" in key)] for name in CASES}
    two = {name: written(tmp_path / f"{name}-two", *keys, *options) for name, keys in cases.items()}
    one = {name: written(tmp_path / f"{name}-one", *keys) for name, keys in cases.items()}
    launch(recipe, 2, *([TRAIN, config] for config in two.values()), timeout=1800)
    launch("single", 1, *([TRAIN, config] for config in one.values()), timeout=1800)
    for name in CASES:
        first, second = tmp_path / f"{name}-two", tmp_path / f"{name}-one"
        assert len(losses(second)) == 2 and losses(first) == pytest.approx(losses(second), rel=1e-5), name
        assert_measured_alike(first, second)
        assert apart(first / WEIGHTS, second / WEIGHTS) < 1e-5, name
