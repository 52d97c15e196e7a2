"""The configurations that are shipped with the package, and how one is found by its name."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .yaml_files import ConfigError

FOLDER = Path(__file__).parents[1] / "configs"  # a link to the repository's configs/; in a wheel the files themselves
KINDS = ("vae", "dit", "open")  # of trainings; accelerate/, deepspeed/ and slurm/ are for launchers


def names_of(kinds: Sequence[str] = KINDS) -> list[str]:
    """`KIND/NAME` of each training's configuration of these kinds."""
    return [f"{kind}/{file.stem}" for kind in kinds for file in sorted((FOLDER / kind).glob("*.yaml"))]


def find(text: str, kinds: Sequence[str] = KINDS) -> Path:
    """A configuration's file: a path where there is one, else the shipped configuration of that name.

    A name is `NAME` or `KIND/NAME`, with or without `configs/` before it and `.yaml` behind it. What is found so is
    said on stderr. Raises ConfigError, which names the nearest.
    """
    if os.path.lexists(text):
        return Path(text)
    name = text.removeprefix("configs/").removesuffix(".yaml")
    names = names_of(kinds)
    found = [each for each in names if name in (each, each.partition("/")[2])]
    if len(found) == 1:
        file = FOLDER / f"{found[0]}.yaml"
        print(f"configuration {found[0]}, as shipped ({file})", file=sys.stderr, flush=True)
        return file
    if found:
        raise ConfigError(f"configuration {text}: there are {' and '.join(found)}: give one of them")
    near = difflib.get_close_matches(name, [*names, *(each.partition("/")[2] for each in names)], 1)
    fix = f"did you mean {near[0]}?" if near else f"the shipped ones are {', '.join(names)}"
    raise ConfigError(f"configuration file {text} does not exist, nor is it a shipped one's name: {fix}")
