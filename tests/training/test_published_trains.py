"""Each published family through the whole trainer: steps, their figures, checkpoints, and an export diffusers loads."""

import json
from pathlib import Path

import pytest
import torch
from comparing import losses
from diffusers import DiffusionPipeline
from open_repository import REPOSITORIES
from PIL import Image
from safetensors.torch import load_file

from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

BY_DEFAULT = "hunyuan15"  # which reads most: two texts and an image
EXPERTS = ("wan_experts", "wan_image")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A manifest of pictures that are as large as a token of LTX-2 asks for."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(4):
        pixels = torch.randint(256, (64, 64 + 32 * (i % 2), 3), dtype=torch.uint8, generator=torch.manual_seed(i))
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    rows = [{"path": f"{i}.png", "caption": "a red 7"} for i in range(4)]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "kind", [k if k == BY_DEFAULT else pytest.param(k, marks=pytest.mark.slow) for k in REPOSITORIES]
)
def test_a_family_is_trained_and_its_export_loads(kind, published_config, repository, pictures, tmp_path):
    run, folder, low = tmp_path / "run", repository(kind), kind in EXPERTS
    more = ["model.expert=low"] * low + [f"data.manifest={pictures}"] * (kind == "ltx2")
    train(published_config(run, folder, "train.steps=2", "train.ema=0", *more), DitTask)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses(run)) == 2 and all(torch.tensor(losses(run)).isfinite()) and all(r["mfu"] > 0 for r in rows)
    pipe = DiffusionPipeline.from_pretrained(run / "pipeline", local_files_only=True)
    part = "transformer_2" if low else "unet" if kind == "svd" else "transformer"
    trained = load_file(run / "checkpoints/step-00000002/ema.safetensors")
    found = getattr(pipe, part).state_dict()
    assert trained and all(torch.equal(found[n.removeprefix("raw.")], value) for n, value in trained.items())
    before = getattr(DiffusionPipeline.from_pretrained(folder, local_files_only=True), part).state_dict()
    assert any(not torch.equal(before[n], found[n]) for n in before)
