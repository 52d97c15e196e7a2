"""Preference tuning trains under every strategy as on one process, with a copy as the reference and with a LoRA."""

import pytest
import torch
from comparing import losses, state
from launching import ROOT, launch
from pair_tables import write_pairs

from latentvid.config.parsing import save_config
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.choice import dit_task
from latentvid.training.trainer import train

KINDS = {"full": (), "lora": ("adapter.kind=lora", "adapter.rank=4")}


@pytest.mark.distributed
@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("recipe", ["ddp", "fsdp2", "zero2", "zero3"])
def test_pairs_train_alike(recipe, dit_config, tiny_pipeline, tmp_path):
    table = write_pairs(tmp_path)
    options = (
        *("data.latents=null", f"data.manifest={table}", "data.max_frames=9", "data.packs_per_step=4"),
        *(f"init={tiny_pipeline}", "model.mlp_ratio=2.6666666666666665", "preference.beta=20", "optim.lr=1e-3"),
        *(f"validation.manifest={table}", "validation.every=2", "validation.samples=4", "validation.bins=2"),
        *("train.steps=4", "checkpoint.every=2"),
    )
    programs = []
    for kind, more in KINDS.items():
        save_config(dit_config(tmp_path / f"{kind}-many", *options, *more), tmp_path / f"{kind}.yaml")
        programs.append([ROOT / "train" / "train_dit.py", tmp_path / f"{kind}.yaml"])
        train(dit_config(tmp_path / f"{kind}-one", *options, *more), dit_task)
    launch(recipe, 2, *programs)
    for kind in KINDS:
        one, many = tmp_path / f"{kind}-one", tmp_path / f"{kind}-many"
        assert losses(many) == pytest.approx(losses(one), rel=1e-5)
        for ours, theirs in zip(*(read_metrics(run, "validation.jsonl") for run in (many, one)), strict=True):
            # differences of errors, times beta: their rounding is seen more than in other losses
            assert [b["loss"] for b in ours["bins"]] == pytest.approx([b["loss"] for b in theirs["bins"]], rel=1e-4)
        margins = [[record["margin"] for record in read_metrics(run)] for run in (many, one)]
        assert margins[0] == pytest.approx(margins[1], rel=1e-3, abs=1e-5) and margins[0][0] == 0 != margins[0][-1]
    if recipe == "ddp":  # whose checkpoints are whole
        for kind in KINDS:
            ours, theirs = (state(tmp_path / f"{kind}-{run}", 4) for run in ("many", "one"))
            for name in theirs:
                torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)
