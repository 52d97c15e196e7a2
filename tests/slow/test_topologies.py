"""The same 30 steps in fp32, whatever spreads them: per-step losses and exported weights against one process."""

from collections.abc import Callable
from pathlib import Path

import pytest
from comparing import Difference, difference
from launching import ROOT, launch

TRAIN = ROOT / "train/train_dit.py"
# name: recipe, processes, more of the configuration; a step has 4 packs, which 4 / processes accumulate
TOPOLOGIES = {
    "DDP x2": ("ddp", 2, ()),
    "DDP x4": ("ddp", 4, ()),
    "FSDP2 x2": ("fsdp2", 2, ()),
    "HSDP, 2 copies of 2 shards": ("hsdp", 4, ()),
    "ZeRO-1 x2": ("zero1", 2, ()),
    "ZeRO-2 x2": ("zero2", 2, ()),
    "ZeRO-3 x2": ("zero3", 2, ()),
    "ZeRO-3 x2, offloaded": ("zero3_offload", 2, ()),
    "DDP, Ulysses 2": ("ddp", 2, ("train.sequence_parallel=2",)),
    "FSDP2, Ulysses 2": ("fsdp2", 2, ("train.sequence_parallel=2",)),
    "ZeRO-3, Ulysses 2": ("zero3", 2, ("train.sequence_parallel=2",)),
    "one process, checkpointed activations": ("single", 1, ("train.gradient_checkpointing=true",)),
}
# name: (recipe, processes) of steps 1 to 10, 11 to 20, 21 to 30
CHAINS = {
    "one -> DDP x2 -> one": (("single", 1), ("ddp", 2), ("single", 1)),
    "HSDP x4 -> FSDP2 x2 -> one": (("hsdp", 4), ("fsdp2", 2), ("single", 1)),
    "ZeRO-3 x2 -> DDP x2 -> one": (("zero3", 2), ("ddp", 2), ("single", 1)),
    "ZeRO-1 x2 -> FSDP2 x2 -> one": (("zero1", 2), ("fsdp2", 2), ("single", 1)),
    "one -> ZeRO-2 x2 -> ZeRO-3 x2": (("single", 1), ("zero2", 2), ("zero3", 2)),
}


@pytest.fixture(scope="module")
def table(request) -> dict[str, Difference]:
    """What each found; shown at the end."""
    found: dict[str, Difference] = {}
    yield found
    lines = [f"{name:40} {d.loss:12.2e} {d.weight:12.2e}" for name, d in found.items()]
    head = f"{'against one process':40} {'loss (rel.)':>12} {'weight':>12}"
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", head, *lines, sep="\n", flush=True)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_topology_gives_the_same_run(name: str, demo: Callable, whole: Path, table: dict, tmp_path: Path):
    recipe, processes, overrides = TOPOLOGIES[name]
    launch(recipe, processes, [TRAIN, demo(tmp_path / "run", *overrides)])
    table[name] = difference(tmp_path / "run", whole)
    table[name].check()


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_goes_on_under_any_other_topology(name: str, demo: Callable, whole: Path, table: dict, tmp_path: Path):
    run = tmp_path / "run"
    for steps, (recipe, processes) in zip((10, 20, 30), CHAINS[name], strict=True):
        launch(recipe, processes, [TRAIN, demo(run, f"train.steps={steps}")])
    table[name] = difference(run, whole)
    table[name].check()
