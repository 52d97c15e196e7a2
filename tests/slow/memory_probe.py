"""Makes three steps as train/train_dit.py does, writes what the process's resident memory grew by, and ends.

    memory_probe.py FOLDER CONFIG.yaml

FOLDER/RANK.json, in bytes: `before`, when all is imported and a tiny model made a step; `peak` and `now` after the
steps. Start it with MALLOC_MMAP_THRESHOLD_=65536: tensors then are mappings of their own, which leave with them.
"""

import importlib
import json
import os
import sys
from pathlib import Path

import torch

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

OF_DEEPSPEED = ("functorch.compile", "torch._inductor.compile_fx")  # which its engine imports when it is made


def resident() -> tuple[int, int]:
    """Bytes: the most that there ever were, and now."""
    found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(found[key].split()[0]) * 1024 for key in ("VmHWM", "VmRSS"))


class ProbedTask(DitTask):
    before, folder = 0, Path()

    def loss(self, model, pack, step):
        if (
            step == 3
        ):  # the first made the moments, after it DDP makes its buckets anew; the third had all from its start
            peak, now = resident()
            rows = {"before": self.before, "peak": peak, "now": now}
            (self.folder / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(rows))
            os._exit(0)
        return super().loss(model, pack, step)


def warm_up() -> None:
    """A tiny model's step: the libraries' own memory is there afterwards."""
    model, layout, words = VideoDiT(width=48, depth=1, heads=2), Packed.of([(1, 4, 4)]), Packed.of_lengths([3])
    model(torch.randn(16, 64), torch.ones(1), torch.randn(3, 512), layout, words).sum().backward()
    torch.optim.AdamW(model.parameters(), fused=True).step()


def main(folder: Path, config: Path) -> None:
    importlib.import_module("diffusers.pipelines.pipeline_utils")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        for name in ("deepspeed", *OF_DEEPSPEED):
            importlib.import_module(name)
    warm_up()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
    ProbedTask.before, ProbedTask.folder = resident()[1], folder
    train(load_config(DitConfig, config), ProbedTask)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
