"""What a page asks for, taken from the programs' own options: a program's parser -> fields -> its command line.

Nothing is said of an option here that its parser does not say: its name, help, choices, default and kind are the
parser's, and what is wrong with a value is what the program says of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..command_line import Parser
from ..errors import UserError
from ..limits import range_of
from ..pipelines.arguments import read_controlnet, read_lora, read_reference
from ..words import counted

Kind = Literal["text", "number", "whole", "flag", "choice", "numbers", "lines", "chosen", "upload", "shown"]
MOST_TEXT = 4000  # characters of a text
MOST_DIGITS = 40
MOST_FILES = 8  # of one option that is given again and again
# options whose values are of a list that the studio was started with: what the list holds
CHOOSERS = {
    "model": "model",
    "then": "model",
    "lora": "lora",
    "lora_2": "lora",
    "control": "control",
    "motion": "motion",
}
BY_LINE = ("local_prompt",)  # options that are given again and again for one clip
SCALED = {read_lora: "SCALE", read_controlnet: "SCALE or SCALE:START-END"}


@dataclass(frozen=True)
class Field:
    """One option of a program.

    name: as the program's namespace has it. option: as its command line has it. kind: "numbers" are `count` of them;
    "lines" are texts, one a line; "chosen" are of a list of the studio's (`CHOOSERS`), each with a word after a colon
    where `hint` says which; "upload" is a file, "shown" are files with a role each. many: may be given again.
    default: None where the program says itself what holds then.
    """

    name: str
    option: str
    kind: Kind
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    many: bool = False
    required: bool = False
    hint: str = ""
    count: int = 1

    @property
    def label(self) -> str:
        words = self.name if self.option == f"--{self.name.replace('_', '-')}" else self.option.strip("-")
        words = words.replace("_", " ").replace("-", " ").capitalize()
        return words.replace("Lora", "LoRA").replace("Fps", "Frames a second")

    @property
    def parts(self) -> int:
        """How many values of a page it takes: files and their words are two."""
        return 2 if self.kind == "shown" or (self.kind == "chosen" and self.many) else 1


def fields_of(parser: Parser, left_out: Sequence[str] = ()) -> list[Field]:
    """The fields of a parser's options, in its order, without those `left_out` (names)."""
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    shown = [action for action in actions if action.dest not in left_out]
    groups = (group._group_actions for group in parser._mutually_exclusive_groups if group.required)
    alone = [here[0] for group in groups if len(here := [action for action in group if action in shown]) == 1]
    return [_field(action, action.required or action in alone) for action in shown]


def _field(action: argparse.Action, required: bool) -> Field:
    many = isinstance(action, argparse._AppendAction)
    text = ((action.help or "") % {"default": action.default}).partition("; give it again")[0]
    words: dict[str, Any] = {"name": action.dest, "option": action.option_strings[-1], "help": text, "many": many}
    words["required"] = required
    if isinstance(action, argparse._StoreTrueAction):
        return Field(kind="flag", default=False, **words)
    if action.dest in CHOOSERS:
        return Field(kind="chosen", hint=SCALED.get(action.type, ""), **words)
    if action.type is read_reference:
        return Field(kind="shown", hint="ROLE", **words)
    if action.type is Path:
        return Field(kind="upload", **words)
    if action.dest in BY_LINE:
        return Field(kind="lines", hint="one a line, in order", **words)
    default = None if many else action.default
    if action.choices is not None:
        return Field(kind="choice", choices=tuple(map(str, action.choices)), default=default, **words)
    if isinstance(action.nargs, int):
        names = action.metavar if isinstance(action.metavar, tuple) else (action.dest.upper(),) * action.nargs
        return Field(kind="numbers", count=action.nargs, hint=" ".join(names), **words)
    if action.type in (int, float) or hasattr(action.type, "range"):
        found = getattr(action.type, "range", None) or range_of(action.dest, action.type is int)
        return Field(kind="whole" if found.whole else "number", default=default, **words)
    return Field(kind="text", default=default, **words)


def read_values(fields: Sequence[Field], given: Sequence[Any], keep: Callable[[str], str]) -> dict[str, Any]:
    """What a page gives (`Field.parts` values a field) as JSON can hold it, without what says nothing.

    keep: takes the path of an uploaded file and gives the name under which it is kept. Raises UserError.
    """
    values, given = {}, iter(given)
    for field in fields:
        value = _read(field, [next(given) for _ in range(field.parts)], keep)
        if value is not None and value != field.default:
            values[field.name] = value
    return values


def _read(field: Field, parts: list[Any], keep: Callable[[str], str]) -> Any:
    first = parts[0]
    if field.kind == "flag":
        return bool(first)
    if first is None or first == "" or first == []:
        return None
    if field.kind == "upload":
        return keep(str(first))
    if field.kind == "chosen" and not field.many:
        return str(first)
    if field.kind in ("chosen", "shown"):
        several = first if isinstance(first, list) else [first]
        if len(several) > MOST_FILES:
            raise UserError(f"{field.option}: {len(several)} of them, and at most {MOST_FILES} can be")
        words = str(parts[1] or "").replace(",", " ").split() if field.parts == 2 else []
        if len(words) > len(several) or (field.kind == "shown" and len(words) < len(several)):
            raise UserError(
                f"{field.option}: {counted(len(several), 'file')} and {counted(len(words), 'word')}: "
                "give one for each, in order"
            )
        words += [""] * (len(several) - len(words))
        if field.kind == "shown" and any("=" in word for word in words):
            raise UserError(f"{field.option}: a role has no equals sign")
        names = [keep(str(one)) if field.kind == "shown" else str(one) for one in several]
        return [list(pair) for pair in zip(names, words, strict=True)]
    if field.kind in ("number", "whole"):
        return _number(field, first)
    text = str(first)
    if len(text) > MOST_TEXT:
        raise UserError(f"{field.option}: {len(text):,} characters, and at most {MOST_TEXT:,} can be")
    if field.kind == "lines":
        return [line.strip() for line in text.splitlines() if line.strip()] or None
    return text if field.kind != "numbers" else " ".join(_numbers(field, text))


def _number(field: Field, value: Any) -> int | float:
    try:
        return (int if field.kind == "whole" else float)(str(value).strip()[:MOST_DIGITS])
    except ValueError:
        kind = "whole number" if field.kind == "whole" else "number"
        raise UserError(f"{field.option}: {str(value)[:40]} is no {kind}") from None


def _numbers(field: Field, text: str) -> list[str]:
    words = text.replace(",", " ").split()
    try:
        [float(word) for word in words]
    except ValueError:
        raise UserError(f"{field.option}: give {field.count} numbers: {field.hint}") from None
    if len(words) != field.count:
        raise UserError(f"{field.option}: {len(words)} numbers, and it takes {field.count}: {field.hint}")
    return words


def command_line(
    fields: Sequence[Field], values: Mapping[str, Any], lists: Mapping[str, Sequence[str]], path: Callable[[str], Path]
) -> list[str]:
    """The options of a program that say `values`, as `read_values` gives them.

    lists: what may be chosen, by list. path: of a file that was kept. Raises UserError for what is in no list, or is
    no option of the program.
    """
    if unknown := sorted(values.keys() - {field.name for field in fields}):
        raise UserError(f"{unknown[0]} is no option of this program")
    return [word for field in fields if field.name in values for word in _words(field, values[field.name], lists, path)]


def _words(field: Field, value: Any, lists: Mapping[str, Sequence[str]], path: Callable[[str], Path]) -> Iterator[str]:
    if field.kind == "flag":
        yield field.option
    elif field.kind == "numbers":
        yield field.option
        yield from _numbers(field, str(value))
    elif field.kind == "lines":
        yield from (f"{field.option}={line}" for line in value)
    elif field.kind == "upload":
        yield f"{field.option}={path(value)}"
    elif field.kind == "shown":
        yield from (f"{field.option}={role}={path(name)}" for name, role in value)
    elif field.kind == "chosen":
        for name, word in value if field.many else [(value, "")]:
            if name not in lists[CHOOSERS[field.name]]:
                raise UserError(f"{field.option}: {name} is none of those that the studio was started with")
            yield f"{field.option}={name}{f':{word}' if word else ''}"
    else:
        yield f"{field.option}={value}"
