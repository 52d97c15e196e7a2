"""What is to be done with a run that has ended: the next useful command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROGRAMS = {"vae": "train-vae", "dit": "train-dit", "distill": "distill"}
PRODUCTS = ("pipeline", "vae", "lora", "controlnet", "motion")


def next_command(run: Path, stage: str | None, config: Mapping[str, Any], finished: bool) -> str:
    """One line for a shell, about the run in a folder; "" where nothing is known to do. Words in capitals are to be
    filled in.

    stage: what is trained, a key of `PROGRAMS`. config: the run's, as YAML has it.
    """
    if not finished:
        program = PROGRAMS.get(stage or "")
        return "" if program is None else _line("latentvid", program, run / "config.yaml")
    made = next((name for name in PRODUCTS if (run / name).is_dir()), None)
    if made == "pipeline":
        return _line("latentvid", "t2v", "--model", run / made, "--prompt", "TEXT", "--output", "clip.mp4")
    if made == "vae":
        manifest = _first(_section(config, "data").get("manifest")) or "MANIFEST"
        encode = ["--manifest", manifest, "--vae", run / made, "--text-encoder", "google/flan-t5-base"]
        return _line("latentvid", "encode", *encode, "--patch", 2, "--out", run.parent / "latents")
    model = _section(config, "model").get("from") or config.get("init") or "MODEL"
    if made in ("lora", "motion"):
        return _line("latentvid", "t2v", "--model", model, f"--{made}", run / made, "--prompt", "TEXT")
    if made == "controlnet":
        reference = ["--signal", "ROLE=clip.mp4", "--prompt", "TEXT"]
        return _line("latentvid", "t2v", "--model", model, "--control", run / made, *reference)
    return _line("latentvid", "report", run)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _first(value: str | Sequence[str] | None) -> str | None:
    return value[0] if isinstance(value, list | tuple) and value else value or None


def _line(*words: object) -> str:
    return shlex.join(map(str, words))
