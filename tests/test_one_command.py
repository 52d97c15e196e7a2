"""The command `latentvid`: the table of programs, and configurations that are found by their names."""

import importlib
import sys
from pathlib import Path

import pytest
import yaml

from latentvid.__main__ import COMMANDS, main
from latentvid.config.parsing import load_config, parse_cli
from latentvid.config.schema import DitConfig, VaeConfig
from latentvid.config.shipped import find, names_of
from latentvid.config.yaml_files import ConfigError

ROOT = Path(__file__).parents[1]
SCRIPTS = [path for folder in ("inference", "train", "vae") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.fixture
def latentvid(monkeypatch, capsys):
    """`latentvid("t2v", ...)`: (status, stdout, stderr) of the command."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["latentvid", *arguments])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_is_called_by_its_name(latentvid, name):
    status, said, _ = latentvid(name, "--help")
    assert status == 0 and said.startswith(f"usage: latentvid {name} ")


def test_every_script_is_a_command():
    """The same code: the script runs the function that the command runs."""
    programs = {command.program.replace(":", ".") for command in COMMANDS.values()}
    for script in SCRIPTS:
        (line,) = [line for line in script.read_text().splitlines() if line.startswith("from latentvid.")]
        module, _, function = line.removeprefix("from latentvid.").partition(" import ")
        assert f"{module}.{function}" in programs, script
        assert callable(getattr(importlib.import_module(f"latentvid.{module}"), function))


def test_what_is_no_command_is_said_with_the_nearest(latentvid):
    assert latentvid("train_dti") == (
        2, "", "error: unknown command train_dti: did you mean train-dit? (see latentvid --help)\n"
    )  # fmt: skip
    status, said, _ = latentvid()
    assert status == 0 and all(f"\n  {name} " in said for name in COMMANDS)


def test_commands_of_commands_are_called_by_their_names(latentvid):
    assert "(see latentvid adapters --help)" in latentvid("adapters", "split")[2]
    assert latentvid("preference", "label", "--help")[1].startswith("usage: latentvid preference label ")


def test_a_shipped_configuration_is_found_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for text in ("base", "dit/base", "configs/dit/base.yaml", "base.yaml"):
        assert find(text, ("dit", "open")).read_bytes() == (ROOT / "configs/dit/base.yaml").read_bytes()
    assert "configuration dit/base, as shipped" in capsys.readouterr().err
    (tmp_path / "base").write_text("run: {dir: mine}")
    assert find("base", ("dit",)) == Path("base")  # a file of one's own comes first
    with pytest.raises(ConfigError, match="nor is it a shipped one's name: did you mean curriculum"):
        find("curiculum", ("dit",))
    with pytest.raises(ConfigError, match="there are vae/demo and dit/demo: give one of them"):
        find("demo")


def test_options_are_given_with_a_space_or_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"run.dir": "x", "vae": "v", "text-encoder": "t", "data.latents": "l", "optim.lr": "1e-4"}
    spaced = [word for key, value in options.items() for word in (f"--{key}", value)]
    joined = [f"--{key}={value}" for key, value in options.items()]
    found = [parse_cli(DitConfig, ["base", *words], kinds=("dit",)) for words in (spaced, joined)]
    assert found[0] == found[1] and (str(found[0].run.dir), found[0].optim.lr) == ("x", 1e-4)


def test_every_shipped_configuration_is_one_of_its_kind():
    roots = {"vae": VaeConfig, "dit": DitConfig, "open": DitConfig}
    for name in names_of():
        if name != "dit/demo_distil":  # a DistillConfig, whose own tests read it
            load_config(roots[name.partition("/")[0]], find(name), ["data.manifest=x"] if "vae/" in name else [])


def test_configurations_are_listed_printed_and_copied(latentvid, tmp_path):
    assert [line.split()[0] for line in latentvid("configs")[1].splitlines()] == names_of()
    assert latentvid("configs", "vae/small")[1] == (ROOT / "configs/vae/small.yaml").read_text()
    assert latentvid("configs", "--copy", str(tmp_path / "c"))[0] == 0
    assert (tmp_path / "c/deepspeed/zero2.json").read_bytes() == (ROOT / "configs/deepspeed/zero2.json").read_bytes()
    status, _, said = latentvid("configs", "--copy", str(tmp_path / "c"))
    assert status == 2 and "give a folder that does not" in said


# whose samples need what a run has alone: signals, a clip in low resolution, a teacher, for some models pictures; and
# recipes of one figure
WITHOUT_LOOKS = {
    "demo_control",
    "demo_distil",
    "demo_ssr",
    "demo_tsr",
    "footage",
    "footage_wan",
    "ltx_lora",
    "wan_lora",
}


def test_shipped_trainings_show_samples_as_they_go():
    files = [*ROOT.glob("configs/dit/*.yaml"), *ROOT.glob("configs/vae/*.yaml"), *ROOT.glob("configs/open/*.yaml")]
    without = set()
    for file in files:
        with_bases = [yaml.safe_load(file.read_text(encoding="utf-8"))]
        while "base" in with_bases[-1]:
            file_of_base = file.parent / with_bases[-1]["base"]
            with_bases.append(yaml.safe_load(file_of_base.read_text(encoding="utf-8")))
        if not any(each.get("samples", {}).get("every") for each in with_bases):
            without.add(file.stem)
    assert len(files) > 15 and without <= WITHOUT_LOOKS
