"""The commands of the documents: every line of a code block that begins with a program's name."""

import argparse
import importlib
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

from latentvid.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = ("pip", "git", "hf", "source", "export", "printf", "tar", "cd")  # whose options are not ours
OURS = ("latentvid", "python", "accelerate", "make", "sbatch")
STANDS_FOR = {"CONFIG.yaml": "configs/dit/base.yaml", "RANK": "0"}  # what a reader puts in their place
LAUNCHERS = ("accelerate", "sbatch")
NO_OPTIONS = ("latentvid.precision",)  # modules that are run as they are: they take none, and only print


class Command(NamedTuple):
    """page: relative to the repository. words: without what stands before the program (VARIABLE=value), with `python`
    for each way to name it."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def blocks(text: str) -> Iterator[str]:
    """Code blocks of a page, those between fences and those that are indented by four columns; lines that end with a
    backslash are joined with the next."""
    fenced, lines = False, []
    for line in [*text.splitlines(), ""]:
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        if not fence and (fenced or line.startswith("    ")):
            lines.append(line)
        elif lines and (fence or line.strip()):
            yield re.sub(r"\\\n", " ", "\n".join(lines))
            lines = []
    if lines:
        yield re.sub(r"\\\n", " ", "\n".join(lines))


def commands_of(page: Path) -> Iterator[Command]:
    for block in blocks(page.read_text(encoding="utf-8")):
        for line in block.splitlines():
            line = re.sub(r"^for \w+ in [^;]*; do (.*); done$", r"\1", line.strip())
            first = re.sub(r"^(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?", "", line).split(" ")[0]
            if first.rstrip("3") in (*OURS, *OTHERS):
                yield from _commands(page, shlex.split(line, comments=True))


def _commands(page: Path, words: list[str]) -> Iterator[Command]:
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        one, words = words[:end], words[end + 1 :]
        while re.fullmatch(r"[A-Z_]+=.*", one[0]):
            one = one[1:]
        program = one[0].removeprefix(".venv/bin/")
        yield Command(page.relative_to(ROOT).as_posix(), ("python" if program == "python3" else program, *one[1:]))


ALL = [command for page in PAGES for command in commands_of(page)]


class Read(BaseException):
    """A program has read its command line: it is stopped before it does anything."""


def concrete(words: tuple[str, ...]) -> list[str]:
    """Without the brackets and dots of a synopsis: `[--only A ...]` is `--only A`."""
    found: list[str] = []
    within = False
    for word in words:
        if word.startswith("[--"):
            word, within = word[1:], True
        if within and word.endswith("]"):
            word, within = word[:-1], False
        value = bool(found) and found[-1].startswith("--") and "=" not in found[-1]  # a prompt may be "..."
        if word != "..." or value:
            found.append(STANDS_FOR.get(word, word))
    return found


@contextmanager
def stopped_after_reading(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs that are run inside read their command line as ever, and end then."""
    read = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *given: object, **words: object) -> object:
        found = read(self, *given, **words)
        if getattr(found, "command", None) is not None and self.prog.endswith("preference"):
            return found  # the command's own options are still to be read
        raise Read

    def stopping(parse: Callable) -> Callable:
        def parse_cli(*given: object, **words: object) -> object:
            parse(*given, **words)
            raise Read

        return parse_cli

    with patch.context() as inside:
        inside.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        for name in ("train_dit", "train_vae", "distill"):
            module = importlib.import_module(f"latentvid.programs.{name}")
            inside.setattr(module, "parse_cli", stopping(module.parse_cli))
        yield


def read(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """The command line of one of OURS, as the program itself reads it, in the repository's root. Raises SystemExit, or
    AssertionError, for what is not there."""
    program, *rest = words
    if program == "latentvid":
        return _read_module("latentvid", rest, patch)
    if program == "make":
        return _read_make(rest)
    if program in LAUNCHERS:
        return _read_launch(program, rest, patch)
    if rest[0] == "-c":
        return compile(rest[1], "command", "exec") and None
    if rest[0] == "-m":
        return _read_module(rest[1], rest[2:], patch)
    script = ROOT / rest[0]
    assert script.is_file(), f"there is no {rest[0]}"
    patch.setattr(sys, "argv", [str(script), *rest[1:]])
    with pytest.raises(Read), stopped_after_reading(patch):
        runpy.run_path(str(script), run_name="__main__")


def _read_module(module: str, rest: list[str], patch: pytest.MonkeyPatch) -> None:
    if module == "pytest":
        files = [word for word in rest if word.startswith("tests/")]
        assert all((ROOT / file).exists() for file in files), files
        return
    if module == "latentvid":
        assert rest[0] in COMMANDS, f"latentvid has no {rest[0]}"
    patch.setattr(sys, "argv", [module, *rest])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of modules that are imported already
        with nullcontext() if module in NO_OPTIONS else pytest.raises(Read), stopped_after_reading(patch):
            runpy.run_module(module, run_name="__main__")


def _read_make(rest: list[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in rest:
        name, equals, value = word.partition("=")
        found = rf"\$\({name}\)|^{name} |\$\(or \$\({name}\)" if equals else rf"^{name}:"
        assert re.search(found, text, re.MULTILINE), f"the Makefile has no {name}"
        assert name != "ARGS" or all((ROOT / file).exists() for file in value.split()), value


def _read_launch(program: str, rest: list[str], patch: pytest.MonkeyPatch) -> None:
    if program == "sbatch":
        (script,) = (word for word in rest if word.endswith(".sbatch"))
        assert (ROOT / script).is_file(), f"there is no {script}"
        return read(["python", *rest[rest.index(script) + 1 :]], patch)
    from accelerate.commands.launch import launch_command_parser

    assert rest[0] == "launch", rest
    found = launch_command_parser().parse_args(rest[1:])
    assert found.config_file is None or (ROOT / found.config_file).is_file(), f"there is no {found.config_file}"
    module = ["-m"] if found.module else []
    return read(["python", *module, found.training_script, *found.training_script_args], patch)
