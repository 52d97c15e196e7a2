"""Every command of the documents is one that its program takes, and is run by a test or listed as not run."""

import re
import sys
from fnmatch import fnmatchcase
from itertools import pairwise

import pytest
import torch
from documented import ALL, OTHERS, ROOT, Command, blocks, concrete, read

from latentvid.__main__ import main
from latentvid.data.video.reading import probe
from latentvid.data.video.writing import write_video

LISTED = ROOT / "docs/development/commands.md"


def test_commands_are_found_in_all_kinds_of_blocks():
    text = "# a\n\n    latentvid t2v \\\n      --steps 2   # two\n\ntext\n\n```\nmake demo\n```\n    pip x\n"
    assert [block.split() for block in blocks(text)] == [
        ["latentvid", "t2v", "--steps", "2", "#", "two"], ["make", "demo"], ["pip", "x"],
    ]  # fmt: skip
    assert len(ALL) > 150 and len({command.page for command in ALL}) > 25
    words = ("python", "x.py", "A", "[--real", "REAL", "...]", "...", "--prompt", "a [b] c", "--prompt", "...")
    assert concrete(words) == ["python", "x.py", "A", "--real", "REAL", "--prompt", "a [b] c", "--prompt", "..."]


@pytest.mark.parametrize("page", sorted({command.page for command in ALL}))
def test_a_command_is_one_that_its_program_takes(page, monkeypatch, capsys):
    """The program exists, has the options, takes their values, and finds the configuration with its keys."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    wrong = []
    for command in (command for command in ALL if command.page == page and command.words[0] not in OTHERS):
        try:
            read(concrete(command.words), monkeypatch)
        except (SystemExit, AssertionError) as error:
            said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
            wrong.append(f"{command}: {(said or [error])[-1]}")
    assert wrong == []


# commands that tests/test_readme.py runs, by page; README.md has those of training.md
THERE = {
    "docs/training.md": ("python *",),
    "docs/tune_wan.md": ("python *",),
    "docs/tune_ltx.md": ("python *",),
    "docs/laptop.md": ("latentvid train-*", "latentvid encode *", "latentvid t2v *"),
    "README.md": ("latentvid manifest *", "latentvid train-*", "latentvid encode *"),
    "docs/performance.md": ("python -m latentvid.precision",),  # by the test above
}
GENERATE = ("t2v", "i2v", "extend", "interpolate", "inpaint", "edit", "style", "long")
HERE = (*(f"latentvid {name} *" for name in GENERATE), "latentvid runs", "latentvid configs *")
LESS = {"--seconds": "1"}  # than a page says


def listed() -> dict[str, list[str]]:
    """Patterns of commands that no test runs as they stand: the files of tests that run the same."""
    rows = re.findall(r"^\| (`.*?) \| [^|]+ \| (.*?) ?\|$", LISTED.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        pattern: re.findall("`([^`]+)`", tests) for cell, tests in rows for pattern in re.findall("`([^`]+)`", cell)
    }


def as_command(command: Command) -> str:
    """With the command's name where a script of inference/ is called."""
    return re.sub(r"^python inference/(\w+)\.py", r"latentvid \1", str(command))


def has(text: str, patterns) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def test_a_command_is_run_by_a_test_or_listed():
    table = listed()
    assert len(table) > 30 and [file for files in table.values() for file in files if not (ROOT / file).is_file()] == []
    elsewhere = [c for c in ALL if not has(str(c), THERE.get(c.page, ()))]
    assert [f"{c.page}: {c}" for c in elsewhere if not has(str(c), table) and not has(as_command(c), HERE)] == []
    assert [pattern for pattern in table if not any(fnmatchcase(str(command), pattern) for command in ALL)] == []


def options_of(command: Command) -> dict[str, str]:
    """Each option of a training's command line with its value."""
    words = " ".join(command.words).replace("=", " ").split()
    return {word: value for word, value in pairwise(words) if word.startswith("--")}


def test_the_readme_trains_as_its_page_does():
    def found(page: str) -> list[Command]:
        return [c for c in ALL if c.page == page and has(str(c), ("*manifest*", "*train*", "*encode*"))]

    short, long = found("README.md"), found("docs/training.md")
    assert len(short) == len(long) == 4
    for one, other in zip(short, long, strict=True):
        assert options_of(one).items() <= options_of(other).items(), str(one)
        named = {word.rpartition("/")[2] for word in other.words}
        assert all(f"{name}.yaml" in named for name in one.words[2:] if name in ("small", "base")), str(one)


def test_commands_that_make_clips_make_them(given_pipeline, tmp_path, monkeypatch, capsys):
    """Each kind once: as it stands, but in one step and of `LESS`, on a model of random weights."""
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/demo", "runs/mine/told"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "pipeline").symlink_to(given_pipeline)
    (tmp_path / "runs/mine/metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    picture = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    for name in ("first.png", "a.png", "b.png", "picture.png", "painting.png"):
        write_video(tmp_path / name, picture, 1)
    picture[:, 8:24, 8:24] = 255
    write_video(tmp_path / "mask.png", picture, 1)
    write_video(tmp_path / "clip.mp4", torch.randint(0, 255, (5, 32, 32, 3), dtype=torch.uint8), 8)
    table, kinds = listed(), {}
    for command in ALL:
        own = has(as_command(command), HERE) and not has(str(command), [*table, *THERE.get(command.page, ())])
        name, *words = as_command(command).split()[1:] if own else [None]
        if own:
            options = {word for word in words if word.startswith("--")} - {"--model", "--output"}
            kinds.setdefault((name, *sorted(options)), command)
    assert {name for name, *_ in kinds} == {*GENERATE, "runs", "configs"} and len(kinds) >= 10
    before = {file.name for file in tmp_path.iterdir()}
    for (name, *_), command in kinds.items():
        rest = command.words[2:]
        words = [LESS.get(word, then) for word, then in pairwise(["", *rest])]
        made = [] if name not in GENERATE else ["--steps=1", f"--output={name}-{len(words)}.mp4"]
        monkeypatch.setattr(sys, "argv", ["latentvid", name, *words, *made])
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, f"{command}: {capsys.readouterr().err}"
        assert not made or probe(made[-1].partition("=")[2]).frames > 1, command
    assert {"configs"} < {file.name for file in tmp_path.iterdir()} - before
