"""What a class's constructor takes, read from where it is written: nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple


class Argument(NamedTuple):
    """As in the source: `default` is None if it is required; `meaning` is from the class's docstring."""

    name: str
    kind: str
    default: str | None
    meaning: str


def constructor(cls: str) -> list[Argument]:
    """The arguments of the constructor of a class, by its dotted name."""
    module, _, name = cls.rpartition(".")
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    init = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    meanings = described(ast.get_docstring(node) or "")
    given = init.args.args[1:]
    defaults = [None] * (len(given) - len(init.args.defaults)) + [ast.unparse(d) for d in init.args.defaults]
    return [
        Argument(a.arg, ast.unparse(a.annotation) if a.annotation else "", default, meanings.get(a.arg, ""))
        for a, default in zip(given, defaults, strict=True)
    ]


def described(docstring: str) -> dict[str, str]:
    """{argument: meaning} of the lines `name, other: meaning` below "Args:"; a deeper line goes on."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in docstring.partition("Args:")[2].splitlines():
        start = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if start:
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2])
        elif line.startswith("        "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found
