"""Spreads a new model as train/train_dit.py does, and says what of it the process held.

    deferred_probe.py FOLDER CONFIG.yaml

FOLDER/RANK.json: `grew`, bytes of resident memory from when all but the model was there to the most while it was made
and spread; `whole`, bytes of the whole model; `mine`, of this process's pieces; `equal`, whether each of these is what
a model built whole has there; `known`, whether the optimiser steps the parameters that the model has now.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import torch

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.training.launch import make_accelerator
from latentvid.training.optim import make_optimizer
from latentvid.training.parallel.zero import make_strategy
from latentvid.training.stages.dit.task import DitTask

_memory = runpy.run_path(str(Path(__file__).with_name("memory_probe.py")))
resident, warm_up = _memory["resident"], _memory["warm_up"]


class Probed(DitTask):
    before = 0

    def _first_model(self):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
        Probed.before = resident()[1]
        return super()._first_model()


def main(folder: Path, path: Path) -> None:
    config = load_config(DitConfig, path)
    accelerator = make_accelerator(config)
    warm_up()
    task = Probed(config, accelerator.device)
    optimizer = make_optimizer(task.model, config.optim)
    strategy = make_strategy(accelerator, config, task.model, optimizer, task.ragged)
    grew = resident()[0] - Probed.before
    pieces = strategy.pieces()
    whole = {name: p.detach().flatten() for name, p in task.new_model().named_parameters()}
    equal = [torch.equal(p.value.flatten(), whole[p.name][p.start :][: p.value.numel()]) for p in pieces]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    known = held == {id(p) for p in task.model.parameters()}
    row = {"grew": grew, "whole": 4 * sum(map(len, whole.values())), "mine": sum(4 * p.value.numel() for p in pieces)}
    row |= {"equal": all(equal) and len(pieces) == len(whole), "known": known}
    (folder / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(row))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
