"""A run in whose every group of processes one comes to an exchange too late, before the first step.

late_rank.py SECONDS CONFIG.yaml; each process writes "met" or "late" for each of its groups.
"""

import runpy
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from latentvid.training.run import TrainingRun
from latentvid.world import meet


def meet_late(run: TrainingRun) -> None:
    for group in dist.distributed_c10d._world.pg_map:
        if group.size() == 1:
            continue
        found = "met"
        if dist.get_rank(group) == 1:
            time.sleep(SECONDS)
        try:
            dist.all_reduce(torch.ones(1), group=group)
        except RuntimeError:
            found = "late"
        print(f"{found}\n", end="", flush=True)  # in one piece: processes share the stream
        meet()  # the others wait through the store, which the limit is not for
    meet()
    if run.main:
        time.sleep(5)  # it holds the store, through which the others learn that all have met
    sys.exit(0)


if __name__ == "__main__":
    SECONDS, program = float(sys.argv.pop(1)), Path(__file__).parents[2] / "train/train_dit.py"
    TrainingRun.loop = meet_late
    sys.argv[0] = str(program)
    runpy.run_path(str(program), run_name="__main__")
