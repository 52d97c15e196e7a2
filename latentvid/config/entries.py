"""What the command line says, written into what a file says; and the names of a file's `stages`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..limits import shown
from .conversion import Text
from .yaml_files import RENAMED, ConfigError, parse_yaml

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
# what all stages have in common: the run, the model, what it learns to predict, and the optimiser whose state goes on
OF_THE_RUN = (
    "stage",
    "run",
    "model",
    "adapter",
    "controlnet",
    "trainable",
    "vae",
    "text_encoder",
    "text",
    "init",
    "init_partial",
    "init_weights",
    "freeze_encoder",
    "prior",
    "teacher",
    "distill.guidance",
    "scheduler.path",
    "scheduler.target",
    "scheduler.betas",
    "scheduler.beta_start",
    "scheduler.beta_end",
    "scheduler.num_train_timesteps",
    "scheduler.zero_terminal_snr",
    "scheduler.snr_shift_scale",
    "optim.name",
    "train.mixed_precision",
    "loss.critic",
    "log",
)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys; an empty section has none."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def lay_over(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Writes each `--a.b=value` (or `a.b=value`) into the nested mapping; `--stages.NAME.a.b=value` into an entry.

    Raises ConfigError for one that would change nothing in a stage, because its entry sets the key too.
    """
    for override in overrides:
        keys, value = _read(override)
        at: Any = raw
        for key in keys[:-1]:
            at = _below(at, key, override)
        if isinstance(at, list):
            raise ConfigError(f"cannot read {override!r}: write --stages.{keys[-1]}.section.key=value")
        at[keys[-1]] = parse_yaml(value, override) if keys == ["stages"] else Text(value)
    keys = [".".join(_read(override)[0]) for override in overrides]
    if "stages" not in keys:  # else they were written together
        for key, override in zip(keys, overrides, strict=True):
            _check_seen(raw.get("stages"), key, override)


def _read(override: str) -> tuple[list[str], str]:
    path, equals, value = override.removeprefix("--").partition("=")
    keys = RENAMED.get(path, path).split(".")
    if not equals or not all(keys):
        raise ConfigError(f"cannot read {override!r}: write --section.key=value")
    return keys, value


def _below(at: Any, key: str, override: str) -> Any:
    if isinstance(at, list):
        names = names_of(at)
        if key not in names:
            raise ConfigError(f"{override}: stages has no {key}: it has {', '.join(names)}")
        return at[names.index(key)]
    if isinstance(said := at.get(key), Text):  # --a={b: 1} before --a.c=2
        at[key] = parse_yaml(said, f"{key}={said}")
        if not (at[key] is None or isinstance(at[key], dict)):
            raise ConfigError(f"{override}: {key}={shown(said)}, said before it, has no keys: leave one of them out")
    if not (isinstance(at.get(key), dict) or (key == "stages" and isinstance(at.get(key), list))):
        at[key] = {}
    return at[key]


def is_of_the_run(key: str) -> bool:
    """Whether all stages have the same there, so that no entry may name it."""
    return any(f"{key}.".startswith(f"{same}.") for same in OF_THE_RUN)


def _check_seen(stages: Any, key: str, override: str) -> None:
    if not isinstance(stages, list) or key.partition(".")[0] == "stages":
        return
    for name, entry in zip(names_of(stages), stages, strict=True):
        own_keys = [own for own in flat(entry) if not is_of_the_run(own)]  # those are refused wherever they stand
        hidden = [own for own in own_keys if f"{own}.".startswith(f"{key}.") or f"{key}.".startswith(f"{own}.")]
        if hidden:
            raise ConfigError(
                f"--{override.removeprefix('--')} would change nothing in the stage {name}, which sets {hidden[0]} "
                f"itself: give it to each stage, --stages.{name}.{hidden[0]}=VALUE"
            )


def names_of(entries: Sequence[Any]) -> list[str]:
    """Of the entries of `stages`: their `name`, or else "stage" and their place, from 1. Raises ConfigError for what
    is no name, or is given twice."""
    names: list[str] = []
    for place, entry in enumerate(entries, 1):
        name = entry.get("name", f"stage{place}") if isinstance(entry, Mapping) else None
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise ConfigError(
                f"stages: entry {place} ({shown(entry)}) must be a mapping of sections, with a name of letters, "
                "digits and _ that begins with a letter, such as name: video_256"
            )
        if name in names:
            raise ConfigError(f"stages: entries {names.index(name) + 1} and {place} are both called {name}")
        names.append(name)
    return names


def by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as YAML has them, with `stages` as a mapping by their names, for who compares or lists keys.

    What cannot be read as stages stays what it is.
    """
    try:
        entries = list(settings.get("stages") or ())
        names = names_of(entries)
    except (ConfigError, TypeError):
        return dict(settings)
    named = {
        name: {key: value for key, value in entry.items() if key != "name"}
        for name, entry in zip(names, entries, strict=True)
    }
    return {key: value for key, value in settings.items() if key != "stages"} | ({"stages": named} if named else {})
