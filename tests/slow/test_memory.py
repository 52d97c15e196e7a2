"""What a step holds at its most, as `--dry-run` estimates it, against resident memory of ranks that really train."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launching import launch

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.training.dryrun.estimate import peak_bytes
from latentvid.training.dryrun.memory import PassBytes, pass_bytes, size, state_bytes
from latentvid.training.dryrun.preflight import blank_pack, simulate
from latentvid.training.launch import make_plan
from latentvid.training.stages.dit.task import DitTask

PROBE = Path(__file__).parent / "memory_probe.py"
MODEL = (
    "model={patch: 2, width: 512, depth: 8, heads: 8}",
    "data.tokens_per_pack=1024",
    "train.steps=5",
    "samples.every=0",
    "validation.every=0",
)
RECOMPUTE = "train.gradient_checkpointing=true"
# name: recipe, processes, strategy, packs of a step, more of the configuration
RUNS = {
    "one process": ("single", 1, "single", 1, ()),
    "one process, recomputing": ("single", 1, "single", 1, (RECOMPUTE,)),
    "one process, bf16": ("single", 1, "single", 1, ("train.mixed_precision=bf16",)),
    "DDP x2": ("ddp", 2, "DDP", 2, ()),
    "DDP x2, two packs each": ("ddp", 2, "DDP", 4, ()),
    "FSDP2 x2": ("fsdp2", 2, "FSDP2", 2, ()),
    "FSDP2 x2, two packs each": ("fsdp2", 2, "FSDP2", 4, ()),
    "ZeRO-1 x2": ("zero1", 2, "ZeRO-1", 2, ()),
    "ZeRO-2 x2": ("zero2", 2, "ZeRO-2", 2, ()),
    "ZeRO-3 x2": ("zero3", 2, "ZeRO-3", 2, ()),
    "ZeRO-3 x2, bf16": ("zero3", 2, "ZeRO-3", 2, ("train.mixed_precision=bf16",)),
}


@pytest.fixture(scope="module")
def table(request) -> dict[str, tuple[float, float]]:
    """Bytes estimated and measured; shown at the end."""
    found: dict[str, tuple[float, float]] = {}
    yield found
    lines = [f"{name:30} {e / 2**20:10.0f} {m / 2**20:10.0f} {e / m - 1:8.1%}" for name, (e, m) in found.items()]
    head = f"{'MiB':30} {'estimate':>10} {'measured':>10} {'off by':>8}"
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", head, *lines, sep="\n", flush=True)


def estimate(path: Path, strategy: str, processes: int) -> float:
    """Of ZeRO's bucket only pages that were written count here: at the start of the backward pass, when most is held,
    none, but under ZeRO-3, which keeps it from step to step, as much as there are gradients."""
    config = load_config(DitConfig, path)
    task = DitTask(config, torch.device("cpu"))
    simulation = simulate(task, make_plan(config, task), processes, steps=3)
    passes = [pass_bytes(task, blank_pack(task, g), config.train.gradient_checkpointing) for g in simulation.packs]
    passing = PassBytes(*map(max, zip(*passes, strict=True)))
    state = next(
        s
        for name, n, s in state_bytes(task.model, task.model.blocks, "adamw", processes)
        if (name, n) == (strategy, processes)
    )
    held, block = size(task.model), size(task.model.blocks[0])
    each = config.data.packs_per_step // processes
    bucket = held if strategy == "ZeRO-3" else 0
    return peak_bytes(strategy, state, passing, held, block, each, bucket)


@pytest.mark.parametrize("name", RUNS)
def test_memory_is_what_the_estimate_says(name: str, demo: Callable, table: dict, tmp_path: Path):
    recipe, processes, strategy, packs, more = RUNS[name]
    path = demo(tmp_path / "run", *MODEL, f"data.packs_per_step={packs}", *more)
    (tmp_path / "seen").mkdir()
    launch(recipe, processes, [PROBE, tmp_path / "seen", path], timeout=900, MALLOC_MMAP_THRESHOLD_="65536")
    ranks = [json.loads(file.read_text()) for file in (tmp_path / "seen").iterdir()]
    assert len(ranks) == processes
    measured = max(rank["peak"] - rank["before"] for rank in ranks)
    table[name] = estimate(path, strategy, processes), measured
    assert table[name][0] == pytest.approx(measured, rel=0.1)
