"""Each published family through the whole trainer: steps, their figures, checkpoints, and an export diffusers loads."""

import json

import pytest
import torch
from comparing import losses
from diffusers import DiffusionPipeline
from open_repository import REPOSITORIES
from safetensors.torch import load_file

from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

BY_DEFAULT = "hunyuan15"  # which reads most: two texts and an image
MORE = {"wan_experts": ("model.expert=low",)}


@pytest.mark.parametrize(
    "kind", [k if k == BY_DEFAULT else pytest.param(k, marks=pytest.mark.slow) for k in REPOSITORIES]
)
def test_a_family_is_trained_and_its_export_loads(kind, published_config, repository, tmp_path):
    run, folder = tmp_path / "run", repository(kind)
    train(published_config(run, folder, "train.steps=2", "train.ema=0", *MORE.get(kind, ())), DitTask)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses(run)) == 2 and all(torch.tensor(losses(run)).isfinite()) and all(r["mfu"] > 0 for r in rows)
    pipe = DiffusionPipeline.from_pretrained(run / "pipeline", local_files_only=True)
    part = pipe.transformer_2 if kind == "wan_experts" else pipe.transformer
    trained = load_file(run / "checkpoints/step-00000002/ema.safetensors")
    found = part.state_dict()
    assert trained and all(torch.equal(found[n.removeprefix("raw.")], value) for n, value in trained.items())
    before = DiffusionPipeline.from_pretrained(folder, local_files_only=True).transformer.state_dict()
    assert kind == "wan_experts" or any(not torch.equal(before[n], found[n]) for n in before)
