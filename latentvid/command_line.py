"""The grammar that all programs share, beside what a program takes.

An option is `--name value` or `--name=value`, written whole; dashes and underscores in a name are the same. Numbers
have the ranges of `limits`. What is wrong is one line, `error: ...`, and exit status 2.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import print_line
from .files import not_here
from .limits import number
from .places import MAY_BE_URLS, is_url

_OPTION = re.compile(r"--[A-Za-z][\w.-]*")
_ARGUMENT = re.compile(r"argument (--[\w-]+|\S+?)(?:/\S+)?: (.*)", re.DOTALL)


def _paths(value: Any) -> Iterator[Path]:
    """Those in an option's value, or in several."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _paths(each)


class Parser(argparse.ArgumentParser):
    """argparse's, with the one grammar. `type=int` and `type=float` mean the number of the option's name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False} | kwargs
        super().__init__(*args, **kwargs | {"prog": called(kwargs.get("prog"))})

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        if action.type in (int, float):
            action.type = number(action.dest, whole=action.type is int)
        value = super()._get_value(action, text)
        if isinstance(value, Path) and action.dest not in MAY_BE_URLS and is_url(value):
            self.error(str(not_here((action.option_strings or [action.dest])[-1], value)))
        return value

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if "--" in given else len(given)
        options = {name for name in self._option_string_actions if name.startswith("--")}
        read = [self._known(text, options) for text in given[:end]]
        found, rest = super().parse_known_args(read + given[end:], namespace)
        self._spare_inputs(found)
        return found, rest

    def _spare_inputs(self, found: argparse.Namespace) -> None:
        """What a program reads is not what it writes over."""
        output = getattr(found, "output", None)
        if not isinstance(output, Path) or not output.is_file():
            return
        for name, value in vars(found).items():
            if name != "output" and any(path.is_file() and path.samefile(output) for path in _paths(value)):
                self.error(f"--output {output} is a file that is read ({name}): give another name")

    def _known(self, text: str, options: Iterable[str]) -> str:
        """An argument with the name of its option as the program has it."""
        name, equals, value = text.partition("=")
        if not _OPTION.fullmatch(name):
            return text
        found = {plain(option): option for option in options}.get(plain(name))
        if found is None:
            self.error(f"unknown option {name}: {nearest(name, options)}")
        if value == "--":  # argparse takes it for the end of the options, and gives a list of nothing
            self.error(f"{found}: `--` is no value")
        return f"{found}{equals}{value}"

    def error(self, message: str) -> NoReturn:
        if found := _ARGUMENT.fullmatch(message):
            name, said = found.groups()
            message = f"{name} {said}" if ": must be" in said or said.startswith("expected") else f"{name}: {said}"
        print_line(f"error: {message} (see {self.prog} --help)")
        raise SystemExit(2)


def called(prog: str | None = None) -> str:
    """What a program is called: as `prog` says (`python -m latentvid.a [COMMAND]`) or by its file, but for one that
    `latentvid` runs, which is `latentvid NAME [COMMAND]`."""
    name = Path(sys.argv[0]).name
    if not name.startswith("latentvid "):
        return name if prog is None else prog
    return name if prog is None else re.sub(r"^python -m [\w.]+", name, prog)


def plain(name: str) -> str:
    """An option's name without what does not count in it."""
    return name.replace("_", "-")


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint at the option that was meant; where none is near, all."""
    options = sorted(options)
    near = difflib.get_close_matches(plain(name), options, 1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(options)}"
