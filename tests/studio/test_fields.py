"""The studio's fields are the programs' own options, and say on a command line what the page said."""

import argparse
import sys
from pathlib import Path

import pytest

from latentvid.command_line import Parser
from latentvid.errors import UserError
from latentvid.pipelines.arguments import ControlNet, Lora, ReferenceFile, read_controlnet, read_lora, read_reference
from latentvid.studio.fields import CHOOSERS, MOST_FILES, MOST_TEXT, command_line, fields_of, read_values
from latentvid.studio.tabs import NO_FIELDS, TABS

LISTS = {"model": ["a/pipeline", "b"], "lora": ["x.safetensors"], "control": ["edges"], "motion": []}


def keep(name: str) -> str:
    return f"kept/{name}"


def path(name: str) -> Path:
    return Path("/gallery") / name


def options() -> Parser:
    parser = Parser(prog="p")
    parser.add_argument("--model", type=Path, default=Path("m"), help="the model")
    parser.add_argument("--lora", type=read_lora, action="append", default=[], help="LoRA; give it again for more")
    parser.add_argument("--control", type=read_controlnet, action="append", default=[])
    parser.add_argument("--reference", type=read_reference, action="append", default=[])
    parser.add_argument("--prompt", action="append", required=True, help="what to show")
    parser.add_argument("--local-prompt", action="append", help="of a part; give it again for each")
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"))
    parser.add_argument("--solver", choices=("euler", "heun"))
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--output", type=Path)
    return parser


FIELDS = fields_of(options(), ("output",))
EMPTY = {  # of a page, in the fields' order
    "model": "b", "lora": [], "scales": "", "control": [], "parts": "", "reference": None, "roles": "", "prompt": "",
    "local": "", "clip": None, "seed": "0", "guidance": "", "interval": "", "solver": "", "large": False,
}  # fmt: skip


def given(**changed):
    return list((EMPTY | changed).values())


def said(**changed) -> argparse.Namespace:
    """What the program reads of a page's values."""
    values = read_values(FIELDS, given(**changed), keep)
    return options().parse_args(command_line(FIELDS, values, LISTS, path))


def test_a_field_is_what_the_parser_says_of_the_option():
    found = {field.name: field for field in FIELDS}
    assert "output" not in found and "help" not in found
    kinds = {name: field.kind for name, field in found.items()}
    assert kinds == {
        "model": "chosen", "lora": "chosen", "control": "chosen", "reference": "shown", "prompt": "text",
        "local_prompt": "lines", "clip": "upload", "seed": "whole", "guidance": "number",
        "guidance_interval": "numbers", "solver": "choice", "large": "flag",
    }  # fmt: skip
    assert found["seed"].help == "default: 0" and found["seed"].default == 0
    assert found["lora"].help == "LoRA"  # a page has its own way to give more
    assert found["prompt"].required and found["guidance_interval"].hint == "LOW HIGH"
    assert found["guidance_interval"].label == "Guidance interval" and found["lora"].label == "LoRA"


def test_the_one_that_is_left_of_a_choice_is_required():
    parser = argparse.ArgumentParser()
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt")
    what.add_argument("--prompts")
    assert [field.required for field in fields_of(parser)] == [False, False]
    assert [field.required for field in fields_of(parser, ("prompts",))] == [True]


def test_what_a_page_says_is_what_the_program_reads():
    args = said(
        lora=["x.safetensors"], scales="0.5", control=["edges"], parts="0.8:0-0.5", reference=["r.png", "s.mp4"],
        roles="style, subject", prompt="--seed=7 <b>", local="a 7\n\n --large \r\na 3", clip="c.mp4",
        seed="9223372036854775807", guidance="1e-3", interval="0.1, 0.9", solver="heun", large=True,
    )  # fmt: skip
    assert args.model == Path("b") and args.prompt == ["--seed=7 <b>"] and args.clip == Path("/gallery/kept/c.mp4")
    assert args.local_prompt == ["a 7", "--large", "a 3"]
    assert args.lora == [Lora(Path("x.safetensors"), 0.5)]
    assert args.control == [ControlNet(Path("edges"), 0.8, 0.0, 0.5)]
    assert args.reference == [
        ReferenceFile("style", Path("/gallery/kept/r.png")),
        ReferenceFile("subject", Path("/gallery/kept/s.mp4")),
    ]
    assert args.seed == 2**63 - 1 and args.guidance == 1e-3 and args.guidance_interval == [0.1, 0.9]
    assert args.solver == "heun" and args.large


def test_what_is_left_empty_is_the_programs_own_default():
    values = read_values(FIELDS, given(prompt="x"), keep)
    assert values == {"model": "b", "prompt": "x"}
    args = said(prompt="x")
    assert (args.seed, args.guidance, args.solver, args.lora, args.large) == (0, None, None, [], False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": "1.5"}, "--seed: 1.5 is no whole number"),
        ({"guidance": "high"}, "--guidance: high is no number"),
        ({"interval": "0.1"}, "--guidance-interval: 1 numbers, and it takes 2: LOW HIGH"),
        ({"interval": "0.1 --large"}, "give 2 numbers: LOW HIGH"),
        ({"prompt": "x" * (MOST_TEXT + 1)}, "--prompt: 4,001 characters, and at most 4,000 can be"),
        ({"local": "x\n" * MOST_TEXT}, "--local-prompt: 8,000 characters, and at most 4,000 can be"),
        ({"lora": ["x.safetensors"], "scales": "1 2"}, "--lora: 1 file and 2 words"),
        ({"reference": ["r.png"], "roles": ""}, "--reference: 1 file and 0 words"),
        ({"reference": ["r.png"], "roles": "a=b"}, "--reference: a role has no equals sign"),
        ({"lora": ["x.safetensors"] * (MOST_FILES + 1)}, "at most 8 can be"),
    ],
)
def test_what_no_program_could_read_is_said(changed, message):
    with pytest.raises(UserError, match=message):
        said(**changed)


def test_what_is_in_no_list_is_not_opened():
    for values in (
        {"model": "/etc"},
        {"lora": [["/etc/passwd", ""]]},
        {"model": "b", "lora": [["x.safetensors:1", ""]]},
    ):
        with pytest.raises(UserError, match="is none of those that the studio was started with"):
            command_line(FIELDS, values, LISTS, path)
    with pytest.raises(UserError, match="output is no option of this program"):
        command_line(FIELDS, {"output": "/etc/passwd"}, LISTS, path)


@pytest.mark.parametrize("tab", TABS, ids=lambda tab: tab.program)
def test_a_tab_has_every_option_of_its_program(tab, monkeypatch, capsys):
    """As --help says them: but for the output, which the gallery names, and files of prompts."""
    monkeypatch.setattr(sys, "argv", [f"latentvid {tab.program}"])
    names = {action.dest for action in tab.options()._actions} - {"help"}
    fields = {field.name: field for field in tab.fields}
    assert names - fields.keys() == {*NO_FIELDS, *tab.without}
    assert [field.name for field in tab.fields][: 1 + len(tab.main)] == ["model", *tab.main]
    text = " ".join(tab.options().format_help().split())
    for field in fields.values():
        assert " ".join(field.help.split()) in text, field.name
        assert field.kind != "upload" or field.name not in CHOOSERS
    paths = {action.dest for action in tab.options()._actions if action.type is Path} - {*NO_FIELDS, *tab.without}
    assert {name for name in paths if fields[name].kind not in ("upload", "chosen")} == set()
