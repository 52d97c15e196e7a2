"""Typed configuration: order of sources, types, and messages that name the key and the fix."""

import dataclasses
import inspect
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from latentvid.config.parsing import help_text, load_config, parse_cli, save_config, to_dict
from latentvid.config.schema import DitConfig, VaeConfig
from latentvid.config.signatures import constructor
from latentvid.config.yaml_files import ConfigError
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.errors import UserError, user_errors
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.discriminator import PatchCritic
from latentvid.models.transformer import VideoDiT


@dataclass(kw_only=True)
class Optim:
    lr: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    betas: tuple[float, float] = (0.9, 0.999)
    name: Literal["adamw", "muon"] = "adamw"

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr} must be above 0")


@dataclass(kw_only=True)
class Sample:
    prompts: list[str] = field(default_factory=list)
    every: int = 100


@dataclass(kw_only=True)
class Run:
    dir: Path
    seed: int = 0
    note: str = ""


@dataclass(kw_only=True)
class Model:
    kind: str = "dit"
    args: dict[str, Any] = field(default_factory=lambda: {"width": 64, "depth": 2})


@dataclass(kw_only=True)
class Config:
    run: Run
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=lambda: Optim(lr=0.5))
    sample: Sample | None = None
    sizes: tuple[tuple[int, int], ...] = ((32, 32),)
    clip: float | None = 1.0
    steps: int | Literal["auto"] = "auto"
    ema: bool = True


def load(text: str, tmp_path: Path, *overrides: str) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(Config, path, overrides)


def test_command_line_over_yaml_over_defaults(tmp_path):
    c = load("run: {dir: out, seed: 3}\noptim: {betas: [0.8, 0.9]}", tmp_path, "--run.seed=5", "--model.args.width=3")
    assert c.run == Run(dir=Path("out"), seed=5)
    assert c.optim == Optim(lr=0.5, betas=(0.8, 0.9))  # the section's own default factory, not the field's default
    assert c.model.args == {"width": 3, "depth": 2}
    assert c.sample is None and c.steps == "auto"
    assert Model().args["width"] == 64


@pytest.mark.parametrize(
    ("override", "key", "want"),
    [
        ("--optim.lr=1e-4", "optim.lr", 1e-4),
        ("--optim.lr=2", "optim.lr", 2.0),
        ("--optim.betas=0.5,0.6", "optim.betas", (0.5, 0.6)),
        ("--sizes=[[1, 2], [3, 4]]", "sizes", ((1, 2), (3, 4))),
        ("--clip=null", "clip", None),
        ("--steps=7", "steps", 7),
        ("--ema=false", "ema", False),
        ("--run.note=12", "run.note", "12"),
        ("--run.note=a=b, c", "run.note", "a=b, c"),
        ("--sample.prompts=a red 7,a blue 3", "sample.prompts", ["a red 7", "a blue 3"]),
        ("--sample.every=5", "sample.every", 5),
        ("--model.args.patch=[1, 2, 2]", "model.args", {"width": 64, "depth": 2, "patch": [1, 2, 2]}),
        ("--model.args.eps=1e-6", "model.args", {"width": 64, "depth": 2, "eps": 1e-6}),
        ("--model.args.norm.kind=rms", "model.args", {"width": 64, "depth": 2, "norm": {"kind": "rms"}}),
    ],
)
def test_command_line_values_take_their_fields_type(tmp_path, override, key, want):
    value = load("run: {dir: out}", tmp_path, override)
    for name in key.split("."):
        value = getattr(value, name)
    assert value == want and type(value) is type(want)


def test_a_key_goes_into_the_section_that_was_given_before_it(tmp_path):
    c = load(
        "run: {dir: out}",
        tmp_path,
        "--model.args={width: 3, eps: 1e-6}",
        "--model.args.depth=5",
        "--model.args.width=4",
    )
    assert c.model.args == {"width": 4, "depth": 5, "eps": 1e-6}
    assert load("run: {dir: out}", tmp_path, "--optim={betas: [0.8, 0.9]}", "--optim.lr=2").optim.betas == (0.8, 0.9)
    assert load("run: {dir: out}", tmp_path, "--sample=null", "--sample.every=5").sample.every == 5
    with pytest.raises(ConfigError, match="--optim.lr=2: optim='3', said before it, has no keys"):
        load("run: {dir: out}", tmp_path, "--optim=3", "--optim.lr=2")


@pytest.mark.parametrize(
    ("text", "override", "parts"),
    [
        ("optim: {lrr: 1}", "", ["unknown key optim.lrr", "1", "did you mean optim.lr?"]),
        ("lr: 1", "", ["unknown key lr", "did you mean optim.lr?"]),
        ("optim.lr: 1", "", ["unknown key optim.lr (value 1): in a file write lr below optim:"]),
        ("", "--optim={lr: 1, lrr: 2}", ["unknown key optim.lrr (value 2): did you mean optim.lr?"]),
        ("", "--optim={lr", ["--optim={lr is not valid YAML"]),
        ("", "--sampel.every=3", ["unknown key sampel", "did you mean sample?"]),
        ("run: {dir: out, seed: 1.5}", "", ["run.seed=1.5", "expected int", "float"]),
        ("", "--run.seed=1.5", ["run.seed='1.5'", "expected int"]),
        ("run: {dir: out, seed: true}", "", ["run.seed=True", "expected int", "bool"]),
        ("run: {dir: out, note: 3}", "", ["run.note=3", "expected str"]),
        ("ema: 1", "", ["ema=1", "expected bool"]),
        ("optim: {lr: fast}", "", ["optim.lr='fast'", "expected float"]),
        ("optim: {lr: null}", "", ["optim.lr=None", "expected float"]),
        ("optim: {betas: [1, 2, 3]}", "", ["optim.betas", "tuple[float, float]", "3 values"]),
        ("optim: {name: adamv}", "", ["optim.name='adamv'", "'muon'", "did you mean 'adamw'?"]),
        ("optim: 3", "", ["optim=3", "expected Optim"]),
        ("", "--optim.lr=-1", ["optim.lr=-1: must be a finite number above 0 and at most 10"]),
        ("sizes: [[1, x]]", "", ["sizes[0][1]='x'", "expected int"]),
        ("steps: 1.5", "", ["steps=1.5", "expected int | 'auto'"]),
        ("- 1", "", ["must hold a mapping"]),
        ("ema: true\nema: false", "", ["'ema' is given twice", "line 3"]),
        ("ema: [", "", ["not valid YAML", "c.yaml"]),
        ("", "--ema", ["--section.key=value"]),
        ("base: none.yaml", "", ["none.yaml does not exist"]),
        ("base: c.yaml", "", ["leads back to itself"]),
        ("sizes: " + "[" * 1200, "", ["c.yaml", "nested too deep"]),
        ("a: &a [*a]", "", ["c.yaml", "holds itself"]),
        ("".join(f"k{i}: &k{i} [{f'*k{i - 1}, ' * 9 if i else 7}]\n" for i in range(9)), "", ["c.yaml", "aliases"]),
        ("steps: " + "9" * 5000, "", ["c.yaml", "not valid YAML"]),
        ("steps: 2024-99-99", "", ["c.yaml", "not valid YAML", "month"]),
        ("# " + "x" * 2_000_000, "", ["c.yaml", "characters"]),
    ],
)
def test_errors_name_the_key_the_value_and_the_fix(tmp_path, text, override, parts):
    text = text if "run:" in text or text.startswith("-") else f"run: {{dir: out}}\n{text}"
    with pytest.raises(ConfigError) as error:
        load(text, tmp_path, *([override] if override else []))
    for part in parts:
        assert part in str(error.value)


def test_a_required_key_that_nothing_sets_is_named():
    with pytest.raises(ConfigError, match=r"run.dir \(Path\) is required.*--run.dir="):
        load_config(Config, None, [])


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no.yaml does not exist"):
        load_config(Config, tmp_path / "no.yaml", [])


def test_base_is_inherited_section_by_section(tmp_path):
    (tmp_path / "base.yaml").write_text("run: {dir: out, seed: 1}\noptim: {lr: 1e-2}")
    c = load("base: base.yaml\nrun: {seed: 2}", tmp_path)
    assert (c.run.dir, c.run.seed, c.optim.lr) == (Path("out"), 2, 0.01)


def test_saved_config_reads_back_equal(tmp_path):
    c = Config(
        run=Run(dir=Path("a b"), note="1e-4"),
        model=Model(args={"eps": 1e-6, "name": "null", "n": None, "deep": {"w": [1, 2.5]}, "depth": 1, "width": 2}),
        optim=Optim(lr=3e-5),
        sample=Sample(prompts=["é: 7", "no", ""]),
        sizes=(),
    )
    save_config(c, tmp_path / "c.yaml")
    assert load_config(Config, tmp_path / "c.yaml", []) == c
    assert to_dict(c)["run"]["dir"] == "a b"


def test_every_key_is_in_the_help(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_cli(Config, ["--help"], prog="x.py", doc="Trains.")
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "usage: x.py CONFIG [--" in out and "Trains." in out
    for part in (
        "--run.dir",
        "required",
        "--optim.lr",
        "default 0.001; peak learning rate",
        "--sample.every",
        "'muon'",
    ):
        assert part in out
    assert out.count("\n  --") == sum(1 for _ in dataclasses.fields(Config)) - 4 + 3 + 2 + 3 + 2


def test_parse_cli_reads_file_and_overrides(tmp_path):
    (tmp_path / "c.yaml").write_text("run: {dir: out}")
    assert parse_cli(Config, [str(tmp_path / "c.yaml"), "--run.seed=4"]).run.seed == 4
    with pytest.raises(ConfigError, match="expected one configuration file, got none"):
        parse_cli(Config, ["--run.seed=4"])


@pytest.mark.parametrize(
    "line",
    [
        ["c.yaml", "--run.seed=4", "--optim.lr=0.5"],
        ["--run.seed", "4", "c.yaml", "--optim.lr", "0.5"],
        ["--run.seed", "4", "--optim.lr=0.5", "c.yaml"],
    ],
)
def test_a_space_is_as_good_as_an_equals_sign(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("run: {dir: out}")
    found = parse_cli(Config, line)
    assert (found.run.seed, found.optim.lr, found.run.dir) == (4, 0.5, Path("out"))


def test_dashes_in_keys_are_underscores_and_values_stay(tmp_path):
    (tmp_path / "c.yaml").write_text("run: {dir: out}")
    line = ["--model.args.mlp-ratio", "-1", "--run.note=--a-b", "--run.dir", "my-run", "--sizes", "[[1, 2]]"]
    found = parse_cli(Config, [str(tmp_path / "c.yaml"), *line])
    assert found.model.args["mlp_ratio"] == -1 and found.run == Run(dir=Path("my-run"), note="--a-b")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["c.yaml", "--run.seed"], "--run.seed has no value: write --section.key value, or --section.key=value"),
        (["c.yaml", "--ema", "--run.seed=3"], "--ema has no value before --run.seed=3: write --ema=VALUE"),
        (["c.yaml", "-x", "3"], "unknown option -x"),
        (["c.yaml", "d.yaml"], r"expected one configuration file, got 2 \(c.yaml, d.yaml\)"),
        (["c.yaml", "--optim.rl", "3"], "unknown key optim.rl .* did you mean optim.lr"),
        (["c.yaml", "--optim..lr", "3"], "cannot read"),
        (["c.yaml", "--optim.lr.x", "3"], "optim.lr"),
    ],
)
def test_command_lines_that_cannot_be_read_say_so(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("run: {dir: out}")
    with pytest.raises(ConfigError, match=message):
        parse_cli(Config, line)


@pytest.mark.parametrize(
    ("cls", "keys"),
    [
        (
            DitConfig,
            ["model.mlp_ratio", "model.heads", "scheduler.target", "timesteps.std", "weighting.gamma", "given.ends"],
        ),
        (VaeConfig, ["model.time_strides", "model.kernels", "loss.critic.widths", "loss.r1"]),
    ],
)
def test_the_help_has_every_key_with_its_meaning(cls, keys):
    lines = {line.split()[0]: line for line in help_text(cls, "").splitlines() if line.startswith("  --")}
    for key in keys:
        assert len(lines[f"--{key}"].partition("default")[2]) > 15, key
    assert not [line for line in lines.values() if " dict[" in line]


@pytest.mark.parametrize("cls", [VideoDiT, CausalVideoAutoencoder, LatentVideoScheduler, PatchCritic])
def test_signatures_are_read_without_an_import(cls):
    found = constructor(f"{cls.__module__}.{cls.__name__}")
    real = inspect.signature(cls.__init__).parameters
    assert [a.name for a in found] == list(real)[1:]
    assert all(eval(a.default) == real[a.name].default for a in found)  # the source of a literal
    assert all(a.meaning for a in found), [a.name for a in found if not a.meaning]


def _bomb(line: str, first: str) -> str:
    return f"a0: &a0 {first}\n" + "".join(line.format(n=n, p=n - 1) for n in range(1, 12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x01\x02\xff" * 99, "not UTF-8|not valid YAML"),
        ("run: {dir: caf\u00e9}".encode("latin-1"), "not UTF-8"),
        ("run: {dir: out}".encode("utf-16"), "not UTF-8"),
        (b"run:\n\tdir: out", "not valid YAML"),
        (b"a" * 300_000, "300|262,144|characters"),
        (_bomb("a{n}: &a{n} [" + "*a{p}, " * 10 + "]\n", "[x]").encode(), "aliases"),
        (_bomb("a{n}: &a{n} {{<<: [" + "*a{p}, " * 10 + "]}}\n", "{x: 1}").encode(), "merged keys"),
        (b"[" * 1000, "nested too deep"),
        (b"a: &a [*a]", "holds itself|nested"),
        (b"? [1, 2]\n: 3", "mapping|YAML|unknown key"),
        (b"run: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("\n".join(f"k{i}: 1" for i in range(1000)).encode(), "unknown key k0"),
        (b"1: 2", "unknown key 1"),
        (b"run: {dir: out}\nrun: {dir: in}", "'run' is given twice"),
        (b"run: &r {dir: out}\noptim: {<<: *r}", "unknown key optim.dir"),
    ],
)
def test_hostile_files_are_one_message(tmp_path, content, message):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(Config, tmp_path / "c.yaml", [])
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_what_is_no_file_is_not_opened(tmp_path, make):
    make(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="c.yaml is not a file: give a YAML file"):
        load_config(Config, tmp_path / "c.yaml", [])


def test_user_errors_are_one_line_and_status_2(capsys):
    @user_errors()
    def main() -> None:
        raise UserError("no such clip: a.mp4")

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and capsys.readouterr().err == "error: no such clip: a.mp4\n"
    with pytest.raises(KeyError), user_errors():
        raise KeyError("a bug keeps its traceback")


@pytest.mark.parametrize("key", ["text_encoder", "data.latents", "model.from", "vae", "run.dir"])
def test_a_name_that_no_file_can_have_is_named_by_its_key(key, tmp_path):
    others = {"text_encoder": "t5", "vae": "vae", "data.manifest": "clips.jsonl", "run.dir": "out"}
    if key == "model.from":
        del others["vae"], others["text_encoder"]
    lines = [f"{k}={v}" for k, v in {**others, key: "x" * 300}.items()]
    with pytest.raises(UserError, match=rf"{re.escape(key)}.*x{{20}}.*300 bytes, and at most 255"):
        load_config(DitConfig, None, lines)
