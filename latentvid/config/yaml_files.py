"""YAML as the configuration reads and writes it."""

import os
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError


class ConfigError(UserError):
    """A key or value of the configuration is wrong; the message names the dotted key, the value and the fix."""


RENAMED = {"data.caption_dropout": "caption.dropout"}  # keys of older versions

LARGEST = 1 << 18  # characters of a configuration, and values in it once its aliases (*name) are written out
LARGEST_MAPPING = 10_000  # keys of one section
DEEPEST = 100  # brackets within each other

# PyYAML follows YAML 1.1, where 1e-4 is a string. Loader and dumper share this rule, so a string "1e-4" is quoted.
_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.Node) -> None:
        """Mappings that are merged (<<) into mappings that are merged can grow tenfold with each line."""
        super().flatten_mapping(node)
        if len(node.value) > LARGEST_MAPPING:
            raise yaml.constructor.ConstructorError(None, None, "too many merged keys (<<)", node.start_mark)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """What ``text`` holds; ConfigError names ``where`` it stands."""
    if len(text) > LARGEST:
        raise ConfigError(f"{where:.300} has {len(text):,} characters: configurations have at most {LARGEST:,}")
    try:
        if max(accumulate((c in "[{") - (c in "]}") for c in text), default=0) > DEEPEST:  # PyYAML takes seconds
            raise RecursionError
        found = yaml.load(text, _Loader)
        size = _size(found, {})
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no such date, a number of thousands of digits
        raise ConfigError(f"{where:.300} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where:.300} is nested too deep, or holds itself (&name ... *name)") from None
    if size > LARGEST:
        raise ConfigError(f"{where:.300} has more than {LARGEST:,} values once its aliases (*name) are written out")
    return found


def _size(value: Any, known: dict[int, int]) -> int:
    """Values in a tree, with what aliases repeat counted each time. RecursionError where it holds itself."""
    if not isinstance(value, dict | list | set | tuple):
        return 1
    if id(value) not in known:
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(each, known) for each in inside)
    return known[id(value)]


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in ``path``, laid over that of its ``base: other.yaml`` (relative to ``path``), if it names one."""
    if not path.is_file():
        what = "is not a file" if os.path.lexists(path) else "does not exist"
        raise ConfigError(f"configuration file {path} {what}: give a YAML file, such as those in configs/")
    try:
        with path.open(encoding="utf-8") as file:
            raw = parse_yaml(file.read(LARGEST + 1), str(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a YAML text file (not UTF-8)") from None
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, not {raw!r:.60}")
    _rename(raw, path)
    if "base" not in raw:
        return raw
    base = (path.parent / str(raw.pop("base"))).resolve()
    if base in (*above, path.resolve()):
        raise ConfigError(f"{path}: base: {base} leads back to itself")
    return merge(read_yaml(base, (*above, path.resolve())), raw)


def _rename(raw: dict[str, Any], path: Path) -> None:
    """Keys of older versions become today's."""
    for old, new in RENAMED.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        if isinstance(raw.get(section), dict) and key in raw[section]:
            there = raw.setdefault(new_section, {})
            if not isinstance(there, dict) or new_key in there:
                raise ConfigError(f"{path}: {old} is the old name of {new}: give {new} alone")
            there[new_key] = raw[section].pop(key)


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``; where both hold a mapping, key by key."""
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(low.get(key), dict)
        merged[key] = merge(low[key], value) if both else value
    return merged


def dump_yaml(data: Any) -> str:
    """Text that `parse_yaml` reads back equal; keys keep their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
