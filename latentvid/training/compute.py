"""What a run computes in: settled at its start, and kept with it wherever it goes on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar, get_args

import torch
import torch.utils.deterministic

from ..config.schema import TrainingConfig
from ..config.yaml_files import read_yaml
from ..errors import UserError
from ..files import read_json
from ..precision import Computed, autocast, choose, describe, fast_fp32, speed
from ..world import from_main
from .checkpoint.checkpoint import CheckpointStore

Config = TypeVar("Config", bound=TrainingConfig)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compute:
    """What the passes through the networks compute in, and what Muon's Newton-Schulz does ("no" is fp32)."""

    passes: Computed
    newton_schulz: Computed


def settle(config: Config, device: torch.device) -> tuple[Config, Compute]:
    """The configuration with `train.mixed_precision` "no" or "bf16", and the whole of what the run computes in.

    `auto` goes on in what the run began with, whatever is faster on this machine; a type asked for by name is taken
    from here on. Either is said where it differs. The main process looks and measures for all.
    """
    fast_fp32(device)
    compute = Compute(**from_main(lambda: asdict(_settled(config, device))))
    return replace(config, train=replace(config.train, mixed_precision=compute.passes)), compute


def _settled(config: TrainingConfig, device: torch.device) -> Compute:
    asked, kept = config.train.mixed_precision, kept_in(config.run.dir)
    passes = kept.get("passes")
    if passes is None:
        passes = choose(asked, device)
    elif asked == "auto" and passes != speed(device).faster:
        logger.warning("%s began in %s and goes on in it: %s", config.run.dir, _named(passes), describe(passes, device))
    elif asked not in ("auto", passes):
        was, passes = passes, choose(asked, device)
        logger.warning(
            "train.mixed_precision=%s: the steps so far were computed in %s, those from here on are in %s",
            asked,
            _named(was),
            _named(passes),
        )
    return Compute(passes, kept.get("newton_schulz") or speed(device).faster)


def kept_in(run: Path) -> dict[str, Computed]:
    """What the run in a folder computes in, as its newest checkpoint says; nothing where there is none.

    Older checkpoints do not say, but their configuration did. Whether they are whole is looked at later.
    """
    store = CheckpointStore(run / "checkpoints")
    for step in reversed(store.steps()):
        try:
            kept = read_json(store.path(step) / "state.json", run).get("computes_in")
            if kept is None:
                kept = {"passes": read_yaml(run / "config.yaml")["train"]["mixed_precision"]}
            return {key: value for key, value in kept.items() if value in get_args(Computed)}
        except (UserError, KeyError, TypeError, AttributeError):
            continue
    return {}


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Inside, if asked, a GPU gives the same numbers each time, and what cannot do so raises; CPUs do anyway."""
    if not asked:
        yield
        return
    # read when the first product of matrices is made; cuBLAS has workspaces of its own choice otherwise
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def compute_type(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """Inside, forward passes compute in `train.mixed_precision` (settled), as in training."""
    return autocast(device, config.train.mixed_precision)


def _named(computed: Computed) -> str:
    return "fp32" if computed == "no" else computed
