"""Typed configuration: the dataclass's defaults < YAML file < ``--section.key value`` on the command line.

Sections are nested ``@dataclass(kw_only=True)`` classes. Field types may be int, float, bool, str, Path, Any, Literal,
unions (``X | None``), ``tuple[X, ...]``, ``tuple[X, Y]``, ``list[X]``, ``dict[str, X]`` and other dataclasses.
``field(metadata={"help": "..."})`` is what ``--help`` shows; checks of values belong in ``__post_init__`` (raise
ValueError: it is reported with the section's name).
"""

import dataclasses
import difflib
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..limits import RangeError, shown
from ..places import is_url, place
from .conversion import MISSING, build, default_of, section_of, sections_in, type_name
from .entries import lay_over
from .shipped import find, names_of
from .signatures import constructor
from .yaml_files import ConfigError, dump_yaml, read_yaml

T = TypeVar("T")
GRAMMAR = """Each key is given as --section.key value or --section.key=value, over what the file says; dashes and
underscores in keys are the same. Lists are [a,b] or a,b; null means no value; a value that begins with -- needs
the equals sign."""


def check_keys(cls: type, raw: Mapping[str, Any], prefix: str, root: type) -> None:
    """Raises ConfigError with the nearest valid key for a key of ``raw`` that ``cls`` (at ``prefix``) has not."""
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls) if f.init}
    for name, value in raw.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if name in names:
            for inner, section, at in sections_in(value, hints[name], key):
                check_keys(inner, section, at, root)
            continue
        siblings = sorted(f"{prefix}.{n}" if prefix else n for n in names)
        every = [k for k, *_ in _walk(root, "")]
        if key in every:  # with its dots, as the command line has it
            section, _, last = key.removeprefix(f"{prefix}.").rpartition(".")
            raise ConfigError(f"unknown key {key} (value {shown(value)}): in a file write {last} below {section}:")
        near = (
            difflib.get_close_matches(key, siblings, 1, 0.8)
            or [k for k in every if k.rsplit(".", 1)[-1] == name]
            or difflib.get_close_matches(key, siblings + every, 1, 0.5)
        )
        fix = f"did you mean {near[0]}?" if near else f"valid keys here: {', '.join(siblings)}"
        raise ConfigError(f"unknown key {key} (value {shown(value)}): {fix}")


def _walk(cls: type, prefix: str) -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """Every leaf key below ``cls``: (dotted key, type, field)."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key = f"{prefix}.{field.name}" if prefix else field.name
        inner = section_of(hints[field.name])
        if inner is None:
            yield key, hints[field.name], field
        else:
            yield from _walk(inner, key)


def load_config(cls: type[T], yaml_path: Path | str | None, overrides: Sequence[str] = ()) -> T:
    """``cls`` from its defaults, the YAML file laid over them and ``overrides`` (``--section.key=value``) over both.

    Raises :class:`ConfigError` for a missing file, bad YAML, an unknown key, a value of the wrong type or one that a
    ``__post_init__`` refuses, and a required key that nothing sets.
    """
    raw = read_yaml(Path(yaml_path)) if yaml_path is not None else {}
    lay_over(raw, overrides)
    check_keys(cls, raw, "", cls)
    try:
        return build(cls, raw, "")
    except RangeError as error:
        raise ConfigError(str(error)) from None


def help_text(cls: type, usage: str, doc: str | None = None) -> str:
    """Usage, ``doc`` and one line a key: name, type, default and its help."""
    rows = [row for key, hint, field in _walk(cls, "") for row in _help_rows(key, hint, field)]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines = [f"  {k:<{widths[0]}}  {t:<{widths[1]}}  {d}{'; ' + h if h else ''}" for k, t, d, h in rows]
    return "\n".join([f"usage: {usage}", *(["", doc.strip()] if doc else []), "", GRAMMAR, "", "keys:", *lines])


def _help_rows(key: str, hint: Any, field: dataclasses.Field) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, help); of a section that takes a constructor's arguments, each of these."""
    text, cls = field.metadata.get("help", ""), field.metadata.get("arguments_of")
    if cls is None:
        default = default_of(field, hint)
        usual = "required" if default is MISSING else f"default {shown(_serial(default))}"
        yield f"--{key}", type_name(hint), usual, text
        return
    for argument in constructor(cls):
        usual = "required" if argument.default is None else f"default {argument.default}"
        yield f"--{key}.{argument.name}", argument.kind, usual, argument.meaning or text
    for name, (kind, meaning) in field.metadata.get("also", {}).items():
        yield f"--{key}.{name}", kind, "default null", meaning


def parse_cli(
    cls: type[T],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    doc: str | None = None,
    kinds: Sequence[str] = (),
) -> T:
    """Reads ``CONFIG [--section.key value ...]``; ``--help`` prints every key and exits with status 0.

    CONFIG is a YAML file, or the name of a shipped configuration of these kinds (``shipped.find``). ``--dry-run`` is
    ``--run.dry_run=true``, ``--profile STEPS`` is ``--log.profile=STEPS``.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    usage = f"{prog or Path(sys.argv[0]).name} CONFIG [--section.key value ...] [--dry-run] [--profile STEPS]"
    if {"-h", "--help"} & set(args):
        names = f"CONFIG is a YAML file, or the name of a shipped one: {', '.join(names_of(kinds))}."
        print(help_text(cls, usage, f"{(doc or '').strip()}\n\n{names}" if kinds else doc))
        raise SystemExit(0)
    files, overrides = _split(args)
    if len(files) != 1:
        got = f"{len(files)} ({', '.join(files)})" if files else "none"
        raise ConfigError(f"expected one configuration file, got {got}; usage: {usage}; --help lists the keys")
    return load_config(cls, find(files[0], kinds) if kinds else Path(files[0]), overrides)


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(configuration files, overrides as --section.key=value) of a command line."""
    files, overrides = [], []
    rest = iter(args)
    for text in rest:
        name, equals, value = text.partition("=")
        if not name.startswith("-") or name == "-":
            files.append(text)
            continue
        if not name.startswith("--"):
            raise ConfigError(f"unknown option {text}: options begin with two dashes, --section.key value")
        name = name.replace("-", "_").replace("__", "--", 1)
        if name == "--dry_run" and not equals:
            name, equals, value = "--run.dry_run", "=", "true"
        name = "--log.profile" if name == "--profile" else name
        if not equals and (value := next(rest, None)) is None:
            raise ConfigError(f"{text} has no value: write --section.key value, or --section.key=value")
        if not equals and value.startswith("--"):
            raise ConfigError(f"{text} has no value before {value}: write {text}=VALUE")
        overrides.append(f"{name}={value}")
    return files, overrides


def _serial(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _serial(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Path):
        return place(value) if is_url(value) else str(value)
    if isinstance(value, dict):
        return {k: _serial(v) for k, v in value.items()}
    return [_serial(v) for v in value] if isinstance(value, list | tuple) else value


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts, lists and scalars (paths as strings): ready for YAML and JSON."""
    return _serial(config)


def default_values(cls: type) -> dict[str, Any]:
    """Of every key that has a default, by its dotted name, as YAML would hold it."""
    values = {key: default_of(field, hint) for key, hint, field in _walk(cls, "")}
    return {key: _serial(value) for key, value in values.items() if value is not MISSING}


def save_config(config: Any, path: Path | str) -> None:
    """Writes YAML that :func:`load_config` reads back equal."""
    Path(path).write_text(dump_yaml(to_dict(config)), encoding="utf-8")
