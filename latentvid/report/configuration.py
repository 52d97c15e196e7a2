"""What a run was asked to do: how its configuration differs from the defaults or from another's, and the file whole."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from html import escape
from typing import Any

from ..config.distillation import DistillConfig
from ..config.entries import by_name, flat
from ..config.parsing import default_values, to_dict
from ..config.schema import DitConfig, VaeConfig
from ..diffusion.scheduler import LatentVideoScheduler
from ..models.autoencoder import CausalVideoAutoencoder
from ..models.discriminator import PatchCritic
from ..models.transformer import VideoDiT
from ..page import note, table
from .runs import Run

CONFIGS = {"vae": VaeConfig, "dit": DitConfig, "distill": DistillConfig}
SIGNATURES = {  # sections that are the arguments of a class
    ("vae", "model"): CausalVideoAutoencoder,
    ("vae", "loss.critic"): PatchCritic,
    ("dit", "model"): VideoDiT,
    ("dit", "scheduler"): LatentVideoScheduler,
    ("distill", "model"): VideoDiT,
    ("distill", "scheduler"): LatentVideoScheduler,
}


def defaults(run: Run) -> dict[str, Any]:
    """Of every key of such a run that has a default, as YAML would hold it."""
    found = default_values(CONFIGS[run.kind])
    for (kind, key), cls in SIGNATURES.items():
        if "kind" in run.section(key) and cls is VideoDiT:  # the network is of another class
            continue
        if kind == run.kind and run.section(key).get("_class_name", cls.__name__) == cls.__name__:
            found |= {f"{key}.{name}": value for name, value in _signature(cls).items()}
    return found


def _signature(cls: type) -> dict[str, Any]:
    arguments = inspect.signature(cls.__init__).parameters.values()
    return {a.name: to_dict(a.default) for a in arguments if a.default is not inspect.Parameter.empty}


def configuration(runs: Sequence[Run]) -> str:
    """What differs, from the defaults or (of several runs) between them, and each file whole."""
    parts = [missing_config(runs)]
    known = [run for run in runs if run.config is not None]
    if len(runs) > 1:
        parts.append(_between(known))
    elif known and known[0].kind is not None:
        parts.append(_from_defaults(known[0]))
    for run in known:
        name = f"{run.label}/config.yaml" if len(runs) > 1 else "config.yaml"
        text = escape(run.config_text)
        parts.append(f"<details><summary>{escape(name)}</summary><pre>{text}</pre></details>")
    return "".join(parts)


def missing_config(runs: Sequence[Run]) -> str:
    lacking = [run for run in runs if run.config is None]
    return "".join(note(f"{run.label}: config.yaml is missing") for run in lacking if len(lacking) < len(runs))


def _from_defaults(run: Run) -> str:
    own, usual = flat(by_name(run.config or {})), defaults(run)
    rows = [
        (escape(key), say(value), say(usual[key]) if key in usual else '<span class="dim">none</span>')
        for key, value in own.items()
        if key not in usual or usual[key] != value
    ]
    return table(("differs from the defaults", "this run", "default"), rows, "words")


def _between(runs: Sequence[Run]) -> str:
    """Keys whose values are not the same in all runs; the folder of a run is its own."""
    if len(runs) < 2:
        return ""
    own = [flat(by_name(run.config or {})) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in own for key in one) if key != "run.dir"]
    rows = [
        (escape(key), *(say(one[key]) if key in one else '<span class="dim">not set</span>' for one in own))
        for key in keys
        if any((key in one, one.get(key)) != (key in own[0], own[0].get(key)) for one in own[1:])
    ]
    head = ("configuration that differs", *(escape(run.label) for run in runs))
    return table(head, rows, "words") or note("the configurations are the same (beside run.dir)")


def say(value: Any) -> str:
    """A value as a cell."""
    return escape("null" if value is None else str(value).lower() if isinstance(value, bool) else str(value))
