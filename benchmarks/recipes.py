"""What the recipes of configs/dit/ take on GPUs of 80 GB: the table of docs/scaling.md.

    python benchmarks/recipes.py [--only 1b ...] [--efficiency 0.4] [--json FILE]    # a minute on one core

Nothing is trained: parameters, FLOPs and bytes are counted on networks without storage, and the rest follows by the
rules of latentvid/training/dryrun/estimate.py for one node of 8 with the recipe's packs, and for 16 such nodes with 16
times as many. Passes are counted in eager mode: compiled blocks hold less. Clips are of 29 frames, 8,192 tokens of 512
x 512 pixels at 4x8x8 and patches of 2, 2,048 of 256 x 256, and pictures 256, each with 256 tokens of text. Memory is of
the stage that takes the most, a step's seconds are the last stage's, and days are of all stages.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from latentvid.config.curriculum import curriculum
from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.config.shipped import FOLDER
from latentvid.models.flops import dit_flops
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Grid
from latentvid.training.dryrun.estimate import H200, Step, dit_pass_bytes, mfu, peak_bytes, step_seconds
from latentvid.training.dryrun.memory import size, state_bytes

CARD, USABLE = 80e9, 0.92  # bytes; the rest is the CUDA context's, the libraries' and the allocator's gaps
NODES = (1, 16)
FRAMES, PIXELS, TEXT, LATENTS = 8, 16, 256, 16  # tokens of a clip in time; pixels of a token's side; tokens of text
TEXT_WIDTHS = {"google/flan-t5-base": 768, "google/flan-t5-xl": 2048}
RECIPES = {"node": "DDP", "1b": "FSDP2", "5b": "FSDP2", "14b": "FSDP2"}  # of configs/dit, and how each is launched
DAY = 86_400


class Taken(NamedTuple):
    """gpus: that work on it. memory: bytes that one holds at most. seconds: of a step. rate: tokens a second of all.
    days: of all stages. used: MFU."""

    gpus: int
    memory: float
    seconds: float
    rate: float
    days: float
    used: float


def config_of(name: str) -> DitConfig:
    return load_config(DitConfig, FOLDER / "dit" / f"{name}.yaml")


def grids_of(config: DitConfig) -> list[Grid]:
    """Of a full pack, in tokens: clips of the size that the configuration has at most, or pictures."""
    side = math.isqrt(config.data.max_area) // PIXELS
    grid = 1 if config.data.image_share == 1 else FRAMES, side, side
    return [grid] * (config.data.tokens_per_pack // math.prod(grid))


def taken(config: DitConfig, strategy: str, efficiency: float) -> tuple[int, list[Taken]]:
    """Parameters, and what it takes on each number of nodes."""
    stages = [stage.config for stage in curriculum(config)]
    each = [stage_taken(stage, strategy, efficiency) for stage in stages]
    found = []
    for of_stages in zip(*(rows for _, rows in each), strict=True):
        memory, days = max(row.memory for row in of_stages), sum(row.days for row in of_stages)
        found.append(of_stages[-1]._replace(memory=memory, days=days))
    return each[0][0], found


def stage_taken(config: DitConfig, strategy: str, efficiency: float) -> tuple[int, list[Taken]]:
    """`taken` of one stage."""
    arguments = {**config.model, "latent_channels": LATENTS, "text_width": TEXT_WIDTHS[config.text_encoder]}
    with torch.device("meta"):
        model = VideoDiT(**arguments)
    arguments = {key: value for key, value in model.config.items() if not key.startswith("_")}
    held, block, grids = size(model), size(model.blocks[0]), grids_of(config)
    recompute = config.train.gradient_checkpointing
    passing = dit_pass_bytes(arguments, grids, [TEXT] * len(grids), recompute)
    shape = {"width": model.width, "depth": len(model.blocks), "recompute": recompute}
    cluster, found = replace(H200, efficiency=efficiency), []
    packs = config.data.packs_per_step // cluster.node
    tokens = len(grids) * math.prod(grids[0])
    for nodes in NODES:
        gpus = nodes * cluster.node
        work = dit_flops(arguments, grids, [TEXT] * len(grids))
        step = Step(work, tokens, gpus * packs, held, held, block, **shape)
        state = next(s for name, n, s in state_bytes(model, model.blocks, "adamw", gpus) if name == strategy)
        memory = peak_bytes(strategy, state, passing, held, block, packs)
        seconds = step_seconds(step, strategy, gpus, cluster)
        rate = step.tokens * step.packs / seconds.all
        days = config.train.steps * seconds.all / DAY
        found.append(Taken(gpus, memory, seconds.all, rate, days, mfu(step, seconds, gpus, cluster)))
    return held // 4, found


def line(name: str, config: DitConfig, strategy: str, parameters: int, each: Taken) -> list[str]:
    shape = f"{config.model['width']} x {config.model['depth']}, {config.model['heads']} heads"
    tokens = f"{config.data.tokens_per_pack:,}{', recomputing' * config.train.gradient_checkpointing}"
    tokens = f"{config.data.packs_per_step // 8} x {tokens}"
    cells = [f"`{name}`", f"{parameters / 1e9:.2f}B", shape, f"{each.gpus}", strategy, tokens]
    cells += [f"{each.memory / 1e9:.0f}", f"{each.seconds:.2f}", f"{each.rate:,.0f}", f"{each.used:.0%}"]
    steps = " + ".join(f"{stage.steps:,}" for stage in curriculum(config))
    return [*cells, steps, f"{each.days:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of the products' rate that passes reach")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    head = ["recipe", "parameters", "width x blocks", "GPUs", "launch", "packs a GPU", "GB a GPU", "s a step"]
    head += ["tokens/s", "MFU", "steps", "days"]
    print(f"| {' | '.join(head)} |", "|" + "---|" * len(head), sep="\n")
    rows: dict[str, Any] = {}
    for name in arguments.only:
        config = config_of(name)
        parameters, found = taken(config, RECIPES[name], arguments.efficiency)
        for each in found:
            rows[f"{name} x{each.gpus}"] = each._asdict()
            print(f"| {' | '.join(line(name, config, RECIPES[name], parameters, each))} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
