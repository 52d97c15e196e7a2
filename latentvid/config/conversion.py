"""Values from YAML and the command line as what the fields of nested dataclasses are typed."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from ..errors import UserError
from ..files import check_parts, not_here
from ..limits import check, shown
from ..places import MAY_BE_URLS, has_credentials, is_url
from ..places import shown as url_shown
from .yaml_files import ConfigError, merge, parse_yaml

T = TypeVar("T")
MISSING = dataclasses.MISSING
TOLD = "_told"  # attribute of a section: see `told`
BOOLS = {"true": True, "false": False}


class Text(str):
    """A value from the command line: its type is not known before its field is."""


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; the hint itself when it is not a union."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def section_of(hint: Any) -> type | None:
    """The dataclass of a field typed ``Section`` or ``Section | None``."""
    return next((m for m in _members(hint) if dataclasses.is_dataclass(m)), None)


def section_of_each(hint: Any) -> type | None:
    """The dataclass of a field typed ``dict[str, Section]``."""
    args = typing.get_args(hint) if typing.get_origin(hint) is dict else ()
    return args[1] if args and dataclasses.is_dataclass(args[1]) else None


def section_in_list(hint: Any) -> type | None:
    """The dataclass of a field typed ``tuple[Section, ...]``, or that or null."""
    each = (typing.get_args(m) for m in _members(hint) if typing.get_origin(m) is tuple)
    return next((args[0] for args in each if args[1:] == (...,) and dataclasses.is_dataclass(args[0])), None)


def type_name(hint: Any) -> str:
    """A field's type as messages show it: ``int | null``."""
    if len(_members(hint)) > 1:
        return " | ".join(type_name(m) for m in _members(hint))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(repr(a) for a in args)
    if section_of_each(hint) is not None:
        return "mapping"
    if origin is not None:
        return f"{origin.__name__}[{', '.join('...' if a is ... else type_name(a) for a in args)}]"
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
    if sequence and text[:1] == "[" and any(str in typing.get_args(m) for m in members):
        return parse_yaml(text, f"--{key}={text}")  # regular expressions have round brackets of their own
    if sequence and text[:1] in ("[", "("):
        return parse_yaml(text.replace("(", "[").replace(")", "]"), f"--{key}={text}")
    if origins & {dict, Any} or section_of(hint):
        return parse_yaml(text, f"--{key}={text}")
    return str(text)


def sections_in(value: Any, hint: Any, key: str) -> Iterator[tuple[type, Mapping[str, Any], str]]:
    """(dataclass, what is given, dotted key) of the section that a field of this type holds, or of each by its name
    or place; also where a command line gives them as one text. Raises ConfigError for a text that is no YAML."""
    one, each, listed = section_of(hint), section_of_each(hint), section_in_list(hint)
    if one is None and each is None and listed is None:
        return
    value = _from_text(value, hint, key) if isinstance(value, Text) else value
    if isinstance(value, dict) and one is not None:
        yield one, value, key
    elif isinstance(value, dict):
        for name, section in value.items():
            yield from sections_in(section, each, f"{key}.{name}")
    elif isinstance(value, list):
        for i, section in enumerate(value):
            yield from sections_in(section, listed, f"{key}[{i}]")


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
    """``value`` (from YAML, or Text) as the field's type; ConfigError names ``key`` when it cannot be."""
    if isinstance(value, Text):
        value = _from_text(value, hint, key)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wrong = ConfigError(f"{key}={shown(value)}: expected {type_name(hint)}, got {type(value).__name__}")
    if hint is Any:
        return _plain(value, key)
    if len(_members(hint)) > 1:
        return _convert_union(value, hint, key, default, wrong)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise wrong
        return build(hint, value, key, default if isinstance(default, hint) else None)
    if origin is Literal:
        for option in args:
            if (value == option and type(value) is type(option)) or (str(value) == str(option) and type(value) is str):
                return option
        near = difflib.get_close_matches(str(value), [str(a) for a in args], 1)
        hint_text = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"{key}={shown(value)}: expected one of {', '.join(map(repr, args))}{hint_text}")
    if origin is dict or hint is dict:
        if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
            raise wrong
        inner = args[1] if args else Any
        kept = default if isinstance(default, dict) else {}
        plain = {k: _convert(v, inner, f"{key}.{k}") for k, v in value.items()}
        return merge(kept, plain)
    if origin in (tuple, list):
        return _convert_sequence(value, origin, args, key, wrong)
    if value is None and hint is type(None):
        return None
    try:
        value = _scalar(value, hint)
    except (ValueError, OverflowError):
        raise wrong from None
    if hint is Path:
        _check_place(value, key)
    return check(key, value, whole=hint is int) if hint in (int, float) else value


def _check_place(value: Path, key: str) -> None:
    """Raises ConfigError for a URL where files of this machine are needed, or one that would keep credentials."""
    if not is_url(value):
        check_parts(value, key)
    elif key.rpartition(".")[2].partition("[")[0] not in MAY_BE_URLS:
        raise ConfigError(str(not_here(key, value)))
    elif has_credentials(value):
        raise ConfigError(
            f"{key}={url_shown(value)}: a URL here has no user, password or query, which the run's folder would keep: "
            "set credentials in the environment (docs/data.md)"
        )


def _convert_union(value: Any, hint: Any, key: str, default: Any, wrong: ConfigError) -> Any:
    members = [m for m in _members(hint) if m is not type(None)]
    if Path in members and isinstance(value, str) and is_url(value):
        return _convert(value, Path, key, default)
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
    if isinstance(value, Text):
        return parse_yaml(value, f"--{key}={value}")
    if isinstance(value, dict):
        return {k: _plain(v, f"{key}.{k}") for k, v in value.items()}
    return value


def build(cls: type[T], raw: Mapping[str, Any], prefix: str, default: T | None = None) -> T:
    """``cls`` from ``raw``; keys that are not there keep ``default``'s values, or the fields' own."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    values = {}
    for name, field in fields.items():
        key = f"{prefix}.{name}" if prefix else name
        before = getattr(default, name) if default is not None else default_of(field, hints[name])
        if name in raw:
            values[name] = _convert(raw[name], hints[name], key, before)
        elif before is not MISSING:
            values[name] = before
        elif dataclasses.is_dataclass(hints[name]):
            values[name] = build(hints[name], {}, key)
        else:
            kind = type_name(hints[name])
            raise ConfigError(f"{key} ({kind}) is required: set it in the YAML file or with --{key}=VALUE")
    try:
        made = cls(**values)
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"{prefix}: {error}" if prefix else str(error)) from None
    before = frozenset() if default is None else told(default)
    object.__setattr__(made, TOLD, before | (raw.keys() & fields.keys()))
    return made


def told(section: Any) -> frozenset[str]:
    """The keys of a section that a file or the command line set; of one that was built in code, those that are not at
    their default."""
    found = getattr(section, TOLD, None)
    if found is not None:
        return found
    fields = [f for f in dataclasses.fields(section) if f.init]
    return frozenset(f.name for f in fields if getattr(section, f.name) != default_of(f, None))


def under(section: T, values: Mapping[str, Any]) -> T:
    """The section with these values where neither a file nor the command line set a key: what another thing tells."""
    made = dataclasses.replace(section, **{k: v for k, v in values.items() if k not in told(section)})
    object.__setattr__(made, TOLD, told(section) | values.keys())
    return made


def default_of(field: dataclasses.Field, hint: Any) -> Any:
    """A field's own default, or MISSING."""
    if field.default_factory is not MISSING:
        # A section that is its own factory is built by build, so that its required keys are reported by name.
        return MISSING if field.default_factory is hint and dataclasses.is_dataclass(hint) else field.default_factory()
    return field.default
