"""Typed configuration: the dataclass's defaults < YAML file < ``--section.key=value`` on the command line.

Sections are nested ``@dataclass(kw_only=True)`` classes. Field types may be int, float, bool, str, Path, Any, Literal,
unions (``X | None``), ``tuple[X, ...]``, ``tuple[X, Y]``, ``list[X]``, ``dict[str, X]`` and other dataclasses.
``field(metadata={"help": "..."})`` is what ``--help`` shows; checks of values belong in ``__post_init__`` (raise
ValueError: it is reported with the section's name).
"""

import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from latentvid.errors import UserError

T = TypeVar("T")
MISSING = dataclasses.MISSING
BOOLS = {"true": True, "false": False}


class ConfigError(UserError):
    """A key or value of the configuration is wrong; the message names the dotted key, the value and the fix."""


class _Text(str):
    """A value from the command line: its type is not known before its field is."""


# --------------------------------------------------------------------------- YAML

# PyYAML follows YAML 1.1, where 1e-4 is a string. Loader and dumper share this rule, so a string "1e-4" is quoted.
_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:i]]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in ``path``, laid over that of its ``base: other.yaml`` (relative to ``path``), if it names one."""
    if not path.is_file():
        raise ConfigError(f"configuration file {path} does not exist")
    try:
        raw = _yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a YAML text file (not UTF-8)") from None
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, not {raw!r:.60}")
    if "base" not in raw:
        return raw
    base = (path.parent / str(raw.pop("base"))).resolve()
    if base in (*above, path.resolve()):
        raise ConfigError(f"{path}: base: {base} leads back to itself")
    return _merge(_read(base, (*above, path.resolve())), raw)


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``; where both hold a mapping, key by key."""
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(low.get(key), dict)
        merged[key] = _merge(low[key], value) if both else value
    return merged


# --------------------------------------------------------------------------- types


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; the hint itself when it is none."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _section(hint: Any) -> type | None:
    """The dataclass of a field typed ``Section`` or ``Section | None``."""
    return next((m for m in _members(hint) if dataclasses.is_dataclass(m)), None)


def _type_name(hint: Any) -> str:
    if len(_members(hint)) > 1:
        return " | ".join(_type_name(m) for m in _members(hint))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(repr(a) for a in args)
    if origin is not None:
        return f"{origin.__name__}[{', '.join('...' if a is ... else _type_name(a) for a in args)}]"
    return "null" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _from_text(text: str, hint: Any, key: str) -> Any:
    """A command line value as YAML would have given it, by what the field can hold."""
    members = _members(hint)
    origins = {typing.get_origin(m) or m for m in members}
    if type(None) in origins and text.lower() in ("none", "null"):
        return None
    sequence = origins & {tuple, list}
    if sequence and text[:1] not in ("[", "(") and (len(origins - {type(None)}) == 1 or "," in text):
        return [part.strip() for part in text.split(",") if part.strip()]
    if sequence and text[:1] in ("[", "("):
        return _yaml(text.replace("(", "[").replace(")", "]"), f"--{key}={text}")
    if origins & {dict, Any} or _section(hint):
        return _yaml(text, f"--{key}={text}")
    return str(text)


def _scalar(value: Any, hint: Any) -> Any:
    """``value`` as int, float, bool, str or Path; raises ValueError when it is not one."""
    if hint is bool:
        value = BOOLS.get(value.lower(), value) if isinstance(value, str) else value
        fits = isinstance(value, bool)
    elif hint is int:
        value = int(value) if isinstance(value, str) else value
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif hint is float:
        fits = isinstance(value, int | float | str) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif hint is Path:
        fits = isinstance(value, str | Path) and str(value) != ""
        value = Path(value).expanduser() if fits else value
    else:
        fits = isinstance(value, hint) if isinstance(hint, type) else False
    if not fits:
        raise ValueError
    return value


def _convert(value: Any, hint: Any, key: str, default: Any = MISSING) -> Any:
    """``value`` (from YAML, or _Text) as the field's type; ConfigError names ``key`` when it cannot be."""
    if isinstance(value, _Text):
        value = _from_text(value, hint, key)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wrong = ConfigError(f"{key}={_show(value)}: expected {_type_name(hint)}, got {type(value).__name__}")
    if hint is Any:
        return _plain(value, key)
    if len(_members(hint)) > 1:
        return _convert_union(value, hint, key, default, wrong)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise wrong
        return _build(hint, value, key, default if isinstance(default, hint) else None)
    if origin is Literal:
        for option in args:
            if (value == option and type(value) is type(option)) or (str(value) == str(option) and type(value) is str):
                return option
        near = difflib.get_close_matches(str(value), [str(a) for a in args], 1)
        hint_text = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"{key}={_show(value)}: expected one of {', '.join(map(repr, args))}{hint_text}")
    if origin is dict or hint is dict:
        if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
            raise wrong
        inner = args[1] if args else Any
        kept = default if isinstance(default, dict) else {}
        plain = {k: _convert(v, inner, f"{key}.{k}") for k, v in value.items()}
        return _merge(kept, plain)
    if origin in (tuple, list):
        return _convert_sequence(value, origin, args, key, wrong)
    if value is None and hint is type(None):
        return None
    try:
        return _scalar(value, hint)
    except ValueError:
        raise wrong from None


def _convert_union(value: Any, hint: Any, key: str, default: Any, wrong: ConfigError) -> Any:
    members = [m for m in _members(hint) if m is not type(None)]
    if value is None and len(members) < len(_members(hint)):
        return None
    if len(members) == 1:
        return _convert(value, members[0], key, default)
    exact = [m for m in members if isinstance(m, type) and type(value) is m]
    for member in exact if exact and not isinstance(value, str) else members:
        try:
            return _convert(value, member, key, default)
        except ConfigError:
            continue
    raise wrong


def _convert_sequence(value: Any, origin: type, args: tuple[Any, ...], key: str, wrong: ConfigError) -> Any:
    if not isinstance(value, list | tuple):
        raise wrong
    if origin is list or args[-1] is ...:
        hints = [args[0]] * len(value)
    elif len(args) == len(value):
        hints = list(args)
    else:
        raise ConfigError(f"{wrong} of {len(value)} values instead of {len(args)}")
    return origin(_convert(v, h, f"{key}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True)))


def _plain(value: Any, key: str) -> Any:
    """Free-form value with the command line's pieces inside it parsed as YAML."""
    if isinstance(value, _Text):
        return _yaml(value, f"--{key}={value}")
    if isinstance(value, dict):
        return {k: _plain(v, f"{key}.{k}") for k, v in value.items()}
    return value


def _show(value: Any) -> str:
    return repr(str(value)) if isinstance(value, str) else repr(value)


# --------------------------------------------------------------------------- building


def _build(cls: type[T], raw: Mapping[str, Any], prefix: str, default: T | None = None) -> T:
    """``cls`` from ``raw``; keys that are not there keep ``default``'s values, or the fields' own."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    values = {}
    for name, field in fields.items():
        key = f"{prefix}.{name}" if prefix else name
        before = getattr(default, name) if default is not None else _default(field, hints[name])
        if name in raw:
            values[name] = _convert(raw[name], hints[name], key, before)
        elif before is not MISSING:
            values[name] = before
        elif dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], {}, key)
        else:
            kind = _type_name(hints[name])
            raise ConfigError(f"{key} ({kind}) is required: set it in the YAML file or with --{key}=VALUE")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{prefix}: {error}" if prefix else str(error)) from None


def _default(field: dataclasses.Field, hint: Any) -> Any:
    if field.default_factory is not MISSING:
        # A section that is its own factory is built by _build, so that its required keys are reported by name.
        return MISSING if field.default_factory is hint and dataclasses.is_dataclass(hint) else field.default_factory()
    return field.default


def _check_keys(cls: type, raw: Mapping[str, Any], prefix: str, root: type) -> None:
    """Raises ConfigError with the nearest valid key for a key of ``raw`` that ``cls`` (at ``prefix``) has not."""
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls) if f.init}
    for name, value in raw.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if name in names:
            inner = _section(hints[name])
            if inner is not None and isinstance(value, dict):
                _check_keys(inner, value, key, root)
            continue
        siblings = sorted(f"{prefix}.{n}" if prefix else n for n in names)
        every = [k for k, *_ in _walk(root, "")]
        near = (
            difflib.get_close_matches(key, siblings, 1, 0.8)
            or [k for k in every if k.rsplit(".", 1)[-1] == name]
            or difflib.get_close_matches(key, siblings + every, 1, 0.5)
        )
        fix = f"did you mean {near[0]}?" if near else f"valid keys here: {', '.join(siblings)}"
        raise ConfigError(f"unknown key {key} (value {_show(value)}): {fix}")


def _walk(cls: type, prefix: str) -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """Every leaf key below ``cls``: (dotted key, type, field)."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key = f"{prefix}.{field.name}" if prefix else field.name
        inner = _section(hints[field.name])
        if inner is None:
            yield key, hints[field.name], field
        else:
            yield from _walk(inner, key)


def _put(raw: dict[str, Any], override: str) -> None:
    """Writes ``--a.b=value`` (or ``a.b=value``) into the nested mapping."""
    path, equals, value = override.removeprefix("--").partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"cannot read {override!r}: write --section.key=value")
    at = raw
    for key in keys[:-1]:
        if not isinstance(at.get(key), dict):
            at[key] = {}
        at = at[key]
    at[keys[-1]] = _Text(value)


def load_config(cls: type[T], yaml_path: Path | str | None, overrides: Sequence[str] = ()) -> T:
    """``cls`` from its defaults, the YAML file laid over them and ``overrides`` (``--section.key=value``) over both.

    Raises :class:`ConfigError` for a missing file, bad YAML, an unknown key, a value of the wrong type or one that a
    ``__post_init__`` refuses, and a required key that nothing sets.
    """
    raw = _read(Path(yaml_path)) if yaml_path is not None else {}
    for override in overrides:
        _put(raw, override)
    _check_keys(cls, raw, "", cls)
    return _build(cls, raw, "")


def help_text(cls: type, usage: str, doc: str | None = None) -> str:
    """Usage, ``doc`` and one line a key: name, type, default and its help."""
    rows = []
    for key, hint, field in _walk(cls, ""):
        default = _default(field, hint)
        shown = "required" if default is MISSING else f"default {_show(_serial(default))}"
        rows.append((f"--{key}", _type_name(hint), shown, field.metadata.get("help", "")))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines = [f"  {k:<{widths[0]}}  {t:<{widths[1]}}  {d}{'; ' + h if h else ''}" for k, t, d, h in rows]
    return "\n".join([f"usage: {usage}", *(["", doc.strip()] if doc else []), "", "keys:", *lines])


def parse_cli(cls: type[T], argv: Sequence[str] | None = None, *, prog: str | None = None, doc: str | None = None) -> T:
    """Reads ``CONFIG.yaml [--section.key=value ...]``; ``--help`` prints every key and exits with status 0."""
    args = list(sys.argv[1:] if argv is None else argv)
    usage = f"{prog or Path(sys.argv[0]).name} CONFIG.yaml [--section.key=value ...]"
    if {"-h", "--help"} & set(args):
        print(help_text(cls, usage, doc))
        raise SystemExit(0)
    files = [a for a in args if not a.startswith("--")]
    if len(files) != 1:
        got = f"{len(files)} ({', '.join(files)})" if files else "none"
        raise ConfigError(f"expected one configuration file, got {got}; usage: {usage}; --help lists the keys")
    return load_config(cls, Path(files[0]), [a for a in args if a.startswith("--")])


# --------------------------------------------------------------------------- writing


def _serial(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _serial(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {k: _serial(v) for k, v in value.items()}
    return [_serial(v) for v in value] if isinstance(value, list | tuple) else value


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts, lists and scalars (paths as strings): ready for YAML and JSON."""
    return _serial(config)


def save_config(config: Any, path: Path | str) -> None:
    """Writes YAML that :func:`load_config` reads back equal."""
    text = yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    Path(path).write_text(text, encoding="utf-8")
